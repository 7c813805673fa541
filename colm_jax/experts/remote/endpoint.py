"""Continuations and scores of prompts, by whichever way an endpoint has. Every attempt is written to the ledger."""

from collections.abc import Sequence
from typing import Any

from colm_jax.experts.remote import answers
from colm_jax.experts.remote.abilities import Abilities
from colm_jax.experts.remote.answers import Choice, Malformed
from colm_jax.experts.remote.bodies import Sampling, View, chat_body, completion_body, view_of
from colm_jax.experts.remote.client import Client, Deadline
from colm_jax.experts.remote.ledger import Ledger
from colm_jax.experts.remote.scores import PromptScores, spell


class Endpoint:
    """An endpoint whose abilities are known."""

    def __init__(self, client: Client, abilities: Abilities, ledger: Ledger):
        self.client, self.abilities, self._ledger = client, abilities, ledger

    def view(self, prompt: dict[str, Any] | None, where: str) -> View:
        """Return the view of a prompt record; errors as `bodies.view_of`."""
        return view_of(prompt, self.abilities.completions, self.abilities.chat, where)

    def together(self, view: View) -> bool:
        """Return whether such views may be sent several in one request."""
        return self.abilities.lists and view.text is not None

    def continuations(
        self,
        views: Sequence[View],
        sequences: Sequence[int | None],
        tokens: int,
        sampling: Sampling,
        deadline: Deadline,
        attempts: int | None = None,
    ) -> list[Choice]:
        """Return a continuation of each view, all in one request, with top log-probabilities where there are any.

        Args:
          views: what is continued; several only where they go `together`.
          sequences: whose they are, for the ledger.
          tokens: most tokens of a continuation.
          sampling: how they are chosen.
          deadline: of all attempts.
          attempts: most of them; None: as the settings say.

        Raises:
          Lost, Refused, UserError: as `Client.post`; Lost too for an answer that is not what was asked for.
        """
        fields, known = sampling.fields(self.abilities.extras), self.abilities
        if views[0].text is None:
            (view,) = views
            fields |= {"logprobs": True, "top_logprobs": known.chat_top} if known.chat_top else {}
            url = f"{self.client.address.base}/chat/completions"
            body = chat_body(self.client.address.name, view, tokens, fields, known.continues)
            read = answers.read_chat
        else:
            fields |= {"logprobs": known.top} if known.top else {}
            url = f"{self.client.address.base}/completions"
            body = completion_body(self.client.address.name, [str(view.sent) for view in views], tokens, fields)
            read = answers.read_completion
        found = self._post(url, body, views, sequences, deadline, attempts)
        return [read(choice) for choice in answers.choices_of(found, len(views))]

    def scores_prompts(self, view: View) -> bool:
        """Return whether the endpoint gives scores of such a view."""
        return bool(self.abilities.scores) if view.text is not None else self.abilities.chat_scores

    def prompt_scores(self, views: Sequence[View], deadline: Deadline) -> list[PromptScores]:
        """Return the scores of the views' own tokens, all in one request; errors as `continuations`.

        One token is generated too, since some endpoints read 0 as no limit; it tells the distribution after the text.
        """
        known, address = self.abilities, self.client.address
        fields, nobody = Sampling().fields(known.extras), [None] * len(views)
        if views[0].text is None:
            (view,) = views
            fields |= {"logprobs": True, "top_logprobs": known.chat_top, "prompt_logprobs": known.chat_top}
            body = chat_body(address.name, view, 1, fields, known.continues)
            found = self._post(f"{address.base}/chat/completions", body, views, nobody, deadline)
            following = answers.read_chat(answers.choices_of(found, 1)[0]).tokens
            tokens = answers.read_prompt_log_probs(found.get("prompt_logprobs"))
            return [PromptScores(tuple(tokens), following[0] if following else None)]
        fields |= {"logprobs": known.top, **({"echo": True} if known.scores == "echo" else {})}
        fields |= {} if known.scores == "echo" else {"prompt_logprobs": known.top}
        body = completion_body(address.name, [str(view.sent) for view in views], 1, fields)
        found = self._post(f"{address.base}/completions", body, views, nobody, deadline)
        choices = answers.choices_of(found, len(views))
        scores = []
        for choice, view in zip(choices, views):
            told = answers.read_completion(choice).tokens
            if known.scores == "echo":
                scores.append(_echoed(told, str(view.sent)))
            else:
                tokens = answers.read_prompt_log_probs(choice.get("prompt_logprobs"))
                scores.append(PromptScores(tuple(tokens), told[0] if told else None))
        return scores

    def _post(self, url, body, views, sequences, deadline, attempts=None):
        """Send a request, each attempt of which is recorded."""
        texts = [(sequence, view.characters, view.sent) for sequence, view in zip(sequences, views)]
        return self.client.post(url, body, deadline, attempts=attempts, before=lambda: self._ledger.record(url, texts))


def _echoed(tokens: Sequence[answers.TokenScore], text: str) -> PromptScores:
    """Return the scores of an echoed prompt, whose last token is generated, unless that was an end of text."""
    for count in (len(tokens) - 1, len(tokens)):
        if count > 0 and spell([token.text for token in tokens[:count]], text) is not None:
            return PromptScores(tuple(tokens[:count]), tokens[count] if count < len(tokens) else None)
    raise Malformed("the echoed tokens do not spell the text that was sent")
