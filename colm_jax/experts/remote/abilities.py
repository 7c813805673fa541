"""What an endpoint can do, found by asking it once, with a text that is always the same."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from colm_jax.errors import UserError
from colm_jax.experts.remote import answers
from colm_jax.experts.remote.address import Address
from colm_jax.experts.remote.answers import TokenScore
from colm_jax.experts.remote.bodies import EXTRAS, Sampling, View, chat_body, completion_body
from colm_jax.experts.remote.client import Client, Deadline, Lost, Refused
from colm_jax.experts.remote.scores import spell
from colm_jax.settings.remote import RemoteSettings

_TEXT = "The capital of France is the city of"
_TOP = (20, 5, 1)  # numbers of top log-probabilities to ask for; endpoints have limits
_ATTEMPTS = 2  # of each request
# A turn that any model continues alike, if it is continued.
_COUNTING = View(messages=({"role": "user", "content": "Count from 1 to 20."},), answer="1, 2, 3, 4, 5, 6, 7, 8, 9,")
_NEXT = "10"


@dataclass(frozen=True)
class Abilities:
    """What an endpoint can do."""

    listed: bool = True  # /v1/models names the model
    completions: bool = False  # /v1/completions continues a text
    lists: bool = False  # it takes several texts in one request
    ids: bool = False  # it takes token ids
    top: int = 0  # most log-probabilities of likely tokens; 0: none
    scores: str = ""  # how it scores a prompt: "echo", "prompt_logprobs", or not
    chat: bool = False  # /v1/chat/completions
    continues: str = ""  # how it continues an unfinished turn: "continue_final_message", "prefill", or not
    verified: bool = False  # a turn was seen to be continued
    chat_top: int = 0  # as `top`, of chat
    chat_scores: bool = False  # it scores a conversation
    tokenize: bool = False  # /tokenize
    extras: tuple[str, ...] = ()  # sampling parameters beyond OpenAI's that it takes

    def __str__(self) -> str:
        """Return a description in one line."""
        parts = []
        if self.completions:
            takes = ["texts", *(["lists"] if self.lists else []), *(["ids"] if self.ids else [])]
            parts.append(f"completions of {', '.join(takes)}")
            parts.append(f"{self.top} top log-probabilities" if self.top else "no log-probabilities")
            parts.append(f"scores prompts ({self.scores})" if self.scores else "does not score prompts")
        if self.chat:
            doubt = "" if self.verified else ", which it did not do when tried: its answers may begin anew"
            how = f"continues a turn by {self.continues}{doubt}" if self.continues else "cannot continue a turn"
            parts.append(f"chat: {how}, {self.chat_top or 'no'} top log-probabilities")
            parts += ["scores conversations"] if self.chat_scores else []
            parts += [] if self.completions else ["a plain prompt is sent as a user's message"]
        parts += ["/tokenize"] if self.tokenize else []
        parts.append(f"takes {', '.join(self.extras)}" if self.extras else "takes only OpenAI's sampling parameters")
        return "; ".join(parts) + ("" if self.listed else "; the model is not in /v1/models")


def probe(client: Client, deadline: Deadline, before: Callable[[str], None] = lambda text: None) -> Abilities:
    """Ask an endpoint what it can do.

    Args:
      client: of the endpoint.
      deadline: of all requests together.
      before: called before each attempt, with the text that is sent.

    Raises:
      UserError: it cannot be reached, or has neither completions nor chat for this model.
    """
    return _Probe(client, deadline, before).run()


def ask(address: str, settings: RemoteSettings) -> Abilities:
    """Return what the endpoint of an address can do; errors as `Address.parse` and `probe`."""
    client = Client(Address.parse(address), settings)
    try:
        return probe(client, Deadline.after(settings.deadline))
    finally:
        client.close()


class _Probe:
    """The requests of `probe`."""

    def __init__(self, client: Client, deadline: Deadline, before: Callable[[str], None]):
        self._client, self._deadline, self._before = client, deadline, before
        self._base, self._name = client.address.base, client.address.name
        self._reasons: list[str] = []  # why completions and chat do not work

    def run(self) -> Abilities:
        """Return what the endpoint can do."""
        names = self._names()
        completions = self._extras(self._complete)
        chat = self._extras(self._chat)
        if completions is None and chat is None:
            listed = f"; it serves {', '.join(names[:8])}" if names and self._name not in names else ""
            raise UserError(f"{self._client.address}: {'; '.join(self._reasons)}{listed}")
        known: dict[str, Any] = {"listed": self._name in names, "tokenize": self._tokenizes()}
        if completions is not None:
            known |= self._of_completions(completions)
        if chat is not None:
            known |= self._of_chat(chat)
        accepted = [found for found in (completions, chat) if found is not None]
        extras = tuple(name for name in EXTRAS if all(name in found for found in accepted))
        return Abilities(completions=completions is not None, chat=chat is not None, extras=extras, **known)

    def _names(self) -> list[str]:
        """Return the models that the endpoint lists; none where it has no list. The first request of all."""
        try:
            found = self._client.get(f"{self._base}/models", self._deadline)
        except Lost as error:
            raise UserError(f"{error}; is the server running?") from None
        except Refused:
            return []
        models = found.get("data") if isinstance(found, dict) else None
        ids = [model.get("id") for model in models if isinstance(model, dict)] if isinstance(models, list) else []
        return [name for name in ids if isinstance(name, str)]

    def _extras(self, ask: Callable[[dict[str, Any]], Any]) -> tuple[str, ...] | None:
        """Return which extra parameters are taken; None if the endpoint does not answer without them either."""
        if self._accepts(lambda: ask(Sampling().fields(EXTRAS))):
            return EXTRAS
        try:
            ask(Sampling().fields(()))
        except (Refused, Lost) as error:
            self._reasons.append(str(error))
            return None
        return tuple(name for name in EXTRAS if self._accepts(lambda: ask(Sampling().fields((name,)))))  # noqa: B023

    def _complete(self, fields: dict[str, Any], prompts: Any = _TEXT, count: int = 1) -> list[dict[str, Any]]:
        """Return the choices of a completion of one token."""
        body = {**completion_body(self._name, [""], 1, fields), "prompt": prompts}
        found = self._post(f"{self._base}/completions", body, str(prompts))
        choices = answers.choices_of(found, count)
        for choice in choices:
            answers.read_completion(choice)
        return choices

    def _chat(self, fields: dict[str, Any], view: View | None = None, continues: str = "", tokens: int = 1) -> Any:
        """Return the answer to a conversation."""
        view = view or View(messages=_COUNTING.messages)
        body = chat_body(self._name, view, tokens, fields, continues)
        found = self._post(f"{self._base}/chat/completions", body, str(view.sent))
        answers.read_chat(answers.choices_of(found, 1)[0])
        return found

    def _of_completions(self, extras: tuple[str, ...]) -> dict[str, Any]:
        """Return what completions can do."""
        fields = Sampling().fields(extras)
        top = self._top(lambda n: answers.read_completion(self._complete({**fields, "logprobs": n})[0]).tokens)
        lists = self._accepts(lambda: self._complete(fields, [_TEXT, _TEXT[:-1]], 2))
        ids = self._accepts(lambda: self._complete(fields, [1, 2]))
        scores = ""
        if top and self._accepts(lambda: self._echoes(fields, top)):
            scores = "echo"
        elif top and self._accepts(lambda: self._scores(fields, top)):
            scores = "prompt_logprobs"
        return {"top": top, "lists": lists, "ids": ids, "scores": scores}

    def _echoes(self, fields: dict[str, Any], top: int) -> bool:
        """Return whether a prompt comes back with log-probabilities."""
        written = answers.read_completion(self._complete({**fields, "logprobs": top})[0]).tokens[0]
        text = _TEXT + written.text
        tokens = answers.read_completion(self._complete({**fields, "echo": True, "logprobs": top}, text)[0]).tokens
        return any(_agrees(part, text, written) for part in (tokens[:-1], tokens))

    def _scores(self, fields: dict[str, Any], top: int) -> bool:
        """Return whether there are log-probabilities beside the answer."""
        written = answers.read_completion(self._complete({**fields, "logprobs": top})[0]).tokens[0]
        (choice,) = self._complete({**fields, "prompt_logprobs": top}, _TEXT + written.text)
        return _agrees(answers.read_prompt_log_probs(choice.get("prompt_logprobs")), _TEXT + written.text, written)

    def _of_chat(self, extras: tuple[str, ...]) -> dict[str, Any]:
        """Return what chat can do."""
        fields = Sampling().fields(extras)

        def top(number: int) -> Any:
            found = self._chat({**fields, "logprobs": True, "top_logprobs": number})
            return answers.read_chat(answers.choices_of(found, 1)[0]).tokens

        continues, verified = self._continuing(fields)
        number, scores = self._top(top), False
        if continues == "continue_final_message" and number:
            scores = self._accepts(lambda: self._scores_chat(fields, number))
        return {"chat_top": number, "continues": continues, "verified": verified, "chat_scores": scores}

    def _scores_chat(self, fields: dict[str, Any], top: int) -> bool:
        """Return whether an answer holds log-probabilities of the conversation."""
        how, asked = "continue_final_message", {**fields, "logprobs": True, "top_logprobs": top}
        found = self._chat(asked, _COUNTING, how)
        written = answers.read_chat(answers.choices_of(found, 1)[0]).tokens[0]
        view = _COUNTING.followed_by(written.text)
        found = self._chat({**fields, "prompt_logprobs": top}, view, how)
        return _agrees(answers.read_prompt_log_probs(found.get("prompt_logprobs")), view.answer, written)

    def _continuing(self, fields: dict[str, Any]) -> tuple[str, bool]:
        """Return how a turn is continued, and whether that was seen."""
        taken = []
        for how in ("continue_final_message", "prefill"):
            try:
                found = self._chat(fields, _COUNTING, how, tokens=4)
            except (Refused, Lost):
                continue
            if answers.read_chat(answers.choices_of(found, 1)[0]).text.lstrip().startswith(_NEXT):
                return how, True
            taken.append(how)
        return (taken[0] if taken else ""), False

    def _top(self, ask: Callable[[int], Any]) -> int:
        """Return the most top log-probabilities that are given."""
        for number in _TOP:
            try:
                tokens = ask(number)
            except (Refused, Lost):
                continue
            if tokens and tokens[0].top:
                return min(number, len(tokens[0].top))
        return 0

    def _tokenizes(self) -> bool:
        """Return whether the server tokenizes texts: vLLM's form, or llama.cpp's."""
        url = f"{self._client.address.root}/tokenize"
        return any(
            self._accepts(lambda: isinstance(self._post(url, body, _TEXT)["tokens"], list))  # noqa: B023
            for body in ({"model": self._name, "prompt": _TEXT}, {"content": _TEXT})
        )

    def _accepts(self, ask: Callable[[], Any]) -> bool:
        """Return whether the endpoint answers, and as it should."""
        try:
            return ask() is not False
        except (Refused, Lost, LookupError, TypeError):
            return False

    def _post(self, url: str, body: dict[str, Any], text: str) -> Any:
        return self._client.post(url, body, self._deadline, attempts=_ATTEMPTS, before=lambda: self._before(text))


def _agrees(tokens: Sequence[TokenScore], text: str, written: TokenScore) -> bool:
    """Return whether tokens spell a text, whose last one has the log-probability with which it was written.

    Some servers give a token's log-probability at the position after it.
    """
    if not tokens or spell([token.text for token in tokens], text) is None:
        return False
    own, before = tokens[-1].log_prob, written.log_prob
    same = tokens[-1].text == written.text and own is not None and before is not None and abs(own - before) < 0.1
    return same and bool(tokens[-1].top)  # without alternatives greedy choices are unknown
