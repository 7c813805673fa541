"""lm-evaluation-harness with our engine: a team as the harness's model `colm_jax`.

The harness's own `lm_eval` command finds only the models that it ships; `colm lm_eval ...` registers this one and
passes all arguments on. It needs the extra `eval`, which does not import PyTorch.
"""

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from scipy.special import log_softmax, logsumexp

from colm_jax import console
from colm_jax.checkpoints.outline import outline_team
from colm_jax.checks import check_number, check_seed, check_whole
from colm_jax.data.chat import Conversation
from colm_jax.errors import UserError
from colm_jax.parallel import make_mesh
from colm_jax.scoring.texts import Scored
from colm_jax.settings.strategies import find_strategy
from colm_jax.storage import shown
from colm_jax.team import CoLM

_LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_DEFAULT_DEVICE = "cuda:0"  # passed by the harness without --device
_AT_ONCE = 32  # texts per call of `CoLM.score`
Pair = tuple[Any, list[int], list[int]]  # texts of context and continuation (or None), context ids, continuation ids


@register_model("colm_jax")
class ColmLM(TemplateLM):
    """A team as a model of the harness.

    Generation is `CoLM.generate`. Likelihoods depend on the strategy: `defer` uses the team's marginal, Σ_z P(Z=z) p_z
    at each token; `base` and `expert` use that model's own. A continuation is greedy if the strategy's greedy decoding
    writes each of its tokens (for `defer`, at the threshold).
    """

    def __init__(
        self,
        base: str | None = None,
        expert: str | None = None,
        expert2: str | None = None,
        threshold: float | None = None,
        strategy: str | None = None,
        dtype: str = "float32",
        expert_dtype: str | None = None,
        mesh: str | None = None,
        max_gen_toks: int = 256,
        seed: int = 0,
        batch_size: int | str = 8,
        device: str | None = None,
        max_batch_size: int | None = None,
        gate: str | None = None,
        team: CoLM | None = None,
        **unknown: Any,
    ):
        """Load a team from --model_args.

        Args:
          base: a Hugging Face directory, team or Hub name.
          expert: likewise; None: the experts named in the team directory, if any.
          expert2: a second expert.
          threshold: η; None: the calibrated threshold, or 0.5.
          strategy: as in `colm generate`; None: `defer` with a gate, otherwise `base`.
          dtype: the type of weights, activations and caches.
          expert_dtype: the type of the experts' weights.
          mesh: devices along data, fsdp and tensor, as in 1x4x2.
          max_gen_toks: the length of answers for tasks that set none.
          seed: the seed of sampling and of strategy `random`.
          batch_size: the number of prompts decoded together; "auto" is 8.
          device: must be None or the harness's default; JAX_PLATFORMS selects devices.
          max_batch_size: must be None.
          gate: a gate without its base, a directory or Hub name; None: the base's own.
          team: a loaded team, instead of `base`.
          unknown: any other argument is an error.

        Raises:
          UserError: an invalid argument.
        """
        super().__init__()
        if unknown:
            raise UserError(f"--model_args: colm_jax has no argument {', '.join(sorted(unknown))}")
        for name, value in (("--device", device), ("--max_batch_size", max_batch_size)):
            if value not in (None, _DEFAULT_DEVICE):
                raise UserError(f"{name} {value}: not supported by colm_jax; JAX_PLATFORMS selects devices")
        if (base is None) == (team is None):
            raise UserError("--model_args: colm_jax needs base=MODEL")
        if batch_size != "auto" and not str(batch_size).isdigit():
            raise UserError(f"--batch_size {batch_size}: must be a whole number or auto")
        rows = check_whole("batch_size", 8 if batch_size == "auto" else int(batch_size), 1)
        seed, max_gen_toks = check_seed("seed", seed), check_whole("max_gen_toks", max_gen_toks, 1)
        threshold = None if threshold is None else check_number("threshold", threshold, 0, 1)
        experts = [name for name in (expert, expert2) if name is not None]
        if team is None and base is not None:
            devices, outline = _mesh(mesh), outline_team(base, experts or None, gate=gate)
            strategy = strategy or ("base" if outline.gate_experts is None else "defer")
            find_strategy(strategy, outline.experts, outline.gate_experts, outline.resident)
            with console.bar("loading", bytes_=True) as bar:
                team = CoLM.from_pretrained(
                    base,
                    experts or None,
                    mesh=devices,
                    dtype=dtype,
                    expert_dtype=expert_dtype,
                    gate=gate,
                    progress=lambda model, done, total: bar.to(done, total, model),
                )
        assert team is not None  # checked above
        self.team = team
        self.name = base or "team"
        self.strategy = strategy or ("base" if team.gate is None else "defer")
        gate_experts = None if team.gate is None else team.gate.kernel.shape[1]
        find_strategy(self.strategy, len(team.experts), gate_experts, team.engine.resident)
        self.threshold = team.settings(threshold=threshold).threshold
        self.max_gen_toks, self.seed, self.batch_size = max_gen_toks, seed, rows

    def get_model_info(self) -> dict[str, Any]:
        """Return facts for the harness to store with the results."""
        marginal = "the team's marginal" if self.strategy == "defer" else f"the {self.strategy}'s own"
        return {
            "strategy": self.strategy,
            "threshold": self.threshold if self.strategy in ("defer", "compose") else None,
            "likelihood": marginal if self.strategy in ("defer", "base", "expert") else None,
        }

    # Texts and ids.

    @property
    def eot_token_id(self) -> int:
        """The end-of-text id."""
        return self.team.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """The first id of a text without context: BOS, or EOS without a BOS."""
        first = self.team.tokenizer.backend.bos_token_id
        return self.eot_token_id if first is None else first

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **unused: Any) -> list[int]:
        """Return the ids of a text prefix; BOS is added unless the text has it, as after a chat template."""
        tokenizer = self.team.tokenizer
        return tokenizer.encode_plain(string) if add_special_tokens is False else tokenizer.encode_prompt(string)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return the ids of a context and of its continuation.

        As in the harness, trailing spaces of the context move to the continuation, and both are tokenised as one text,
        which is split where the context's ids end. If a token spans the split, the harness assigns it to the context,
        so that the continuation loses its beginning, or everything; here it belongs to the continuation, as in
        training.
        """
        whole, alone = self.tok_encode(context + continuation), self.tok_encode(context.rstrip())
        cut = next((i for i, (a, b) in enumerate(zip(whole, alone)) if a != b), min(len(whole), len(alone)))
        if cut == 0:  # nothing to predict the first token from
            return [self.prefix_token_id], whole[whole[:1] == [self.prefix_token_id] :]
        return whole[:cut], whole[cut:]

    @property
    def tokenizer_name(self) -> str:
        """The name of the tokenizer in the harness's caches."""
        return str(self.team.tokenizer.directory).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the tokenizer's chat template if requested, otherwise None."""
        return self.team.tokenizer.backend.chat_template if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation rendered as text."""
        tokenizer = self.team.tokenizer
        if not tokenizer.backend.chat_template:
            raise UserError(f"--apply_chat_template: {shown(tokenizer.directory)} has no chat template")
        return Conversation.of({"messages": chat_history}, tokenizer, "--apply_chat_template").apply(
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    # Requests of the harness.

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the answers to the requests; those with equal settings are decoded together."""
        answers: list[str] = [""] * len(requests)
        settings = [_generation(request.args[1], self.max_gen_toks) for request in requests]
        order = sorted(range(len(requests)), key=lambda i: repr(settings[i]))
        with console.bar("generating", len(requests)) as bar:
            done = 0
            for _, group in groupby(order, key=lambda i: repr(settings[i])):
                numbers = list(group)
                found = self.team.generate(
                    [{"input_ids": self.tok_encode(requests[i].args[0])} for i in numbers],
                    threshold=self.threshold,
                    strategy=self.strategy,
                    seed=self.seed,
                    batch_size=self.batch_size,
                    places=[f"{_name(requests[i])}: prompt {i + 1}" for i in numbers],
                    progress=partial(_advance, bar, done),
                    **settings[numbers[0]],
                )
                for i, answer in zip(numbers, found):
                    answers[i] = answer.text
                    self.cache_hook.add_partial("generate_until", requests[i].args, answer.text)
                done += len(numbers)
        return answers

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return the log-likelihoods of continuations given contexts, and whether they are greedy.

        Raises:
          UserError: a continuation without a token, whose probability would be 1; a text longer than the context.
        """
        pairs: list[Pair] = []
        for i, request in enumerate(requests):
            context, continuation = self._encode_pair(*request.args)
            if not request.args[1] or not continuation:
                raise UserError(
                    f"{_name(request)}: request {i + 1}: the continuation {request.args[1]!r:.60} has no token of "
                    f"its own after {request.args[0][-20:]!r}; remove the empty choice from the task"
                )
            pairs.append((request.args, context, continuation))
        return self._loglikelihood_tokens(pairs)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihoods of whole texts; longer ones are split into windows of the context.

        Raises:
          UserError: a text without a token.
        """
        windows: list[Pair] = []
        owners: list[int] = []
        for i, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            ids = ids[ids[:1] == [self.prefix_token_id] :]  # the window adds BOS, which the text may have
            if not ids:
                raise UserError(f"{_name(request)}: request {i + 1}: an empty text has no likelihood")
            # A window's first token is context only: it leaves room for one token less.
            for pair in get_rolling_token_windows(ids, self.prefix_token_id, self.team.context - 1, 1):
                windows.append((None, *make_disjoint_window(pair)))
                owners.append(i)
        totals = [0.0] * len(requests)
        for owner, (log_prob, _) in zip(owners, self._loglikelihood_tokens(windows)):
            totals[owner] += log_prob
        for request, total in zip(requests, totals):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _loglikelihood_tokens(
        self, requests: Sequence[Pair], disable_tqdm: bool = False, **unused: Any
    ) -> list[tuple[float, bool]]:
        """Return for each pair the continuation's log-probability and whether it is greedy."""
        if self.strategy not in ("defer", "base", "expert"):
            raise UserError(f"strategy={self.strategy}: has no likelihood; use defer, base or expert for such tasks")
        if not self.team.units.shared:
            raise UserError(
                "these tasks compare likelihoods of tokens, which experts with other tokenizers do not have"
            )
        found: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        lengths = [len(context) + len(continuation) for _, context, continuation in requests]
        for i, length in enumerate(lengths):
            if length > self.team.context:
                raise UserError(f"text {i + 1}: {length} tokens exceed the context of {self.team.context}; shorten it")
        with console.bar("scoring", len(requests)) as bar:
            done = 0
            for numbers in _chunks(sorted(range(len(requests)), key=lengths.__getitem__)):
                texts = [(requests[i][1], requests[i][2]) for i in numbers]
                records = [{"input_ids": c + t, "labels": [-100] * len(c) + t} for c, t in texts]
                for i, score in zip(numbers, self.team.score(records)):
                    found[i] = self._likelihood(score)
                    if requests[i][0] is not None:  # not a window of a longer text
                        self.cache_hook.add_partial("loglikelihood", requests[i][0], found[i])
                done += len(numbers)
                bar.to(done)
        return found

    def _likelihood(self, score: Scored) -> tuple[float, bool]:
        """Return the log-probability of the counted tokens under the strategy, and whether all of them are greedy."""
        models = np.column_stack([score.base_log_prob, score.expert_log_probs])[score.mask].astype(np.float64)
        right = score.is_argmax[score.mask]
        if self.strategy == "base":
            return float(models[:, 0].sum()), bool(right[:, 0].all())
        if self.strategy == "expert":
            return float(models[:, 1].sum()), bool(right[:, 1].all())
        assert score.gate_logits is not None  # required by strategy defer
        logits = score.gate_logits[score.mask].astype(np.float64)
        writers = log_softmax(np.column_stack([np.zeros(len(logits)), logits]), axis=1)
        deferred = -np.expm1(writers[:, 0]) > self.threshold
        writer = np.where(deferred, 1 + logits.argmax(axis=1), 0)
        greedy = np.take_along_axis(right, writer[:, None], axis=1)
        return float(logsumexp(writers + models, axis=1).sum()), bool(greedy.all())


def _mesh(sizes: str | None):
    if sizes is None:
        return None
    parts = str(sizes).split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) for part in parts):
        raise UserError(f"mesh={sizes}: must be three whole numbers, data x fsdp x tensor, as in 1x4x2")
    data, fsdp, tensor = map(int, parts)
    return make_mesh(data, fsdp, tensor)


def _name(request: Any) -> str:
    return getattr(request, "task_name", None) or "task"


def _chunks(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    for first in range(0, len(numbers), _AT_ONCE):
        yield numbers[first : first + _AT_ONCE]


def _generation(given: dict[str, Any], max_gen_toks: int) -> dict[str, Any]:
    """Convert a task's generation_kwargs to arguments of `CoLM.generate`; null counts as missing.

    Without do_sample the temperature decides, which is 0 by default.

    Raises:
      UserError: an unsupported setting, or a value of the wrong type.
    """
    left = {name: value for name, value in given.items() if value is not None}
    until = left.pop("until", [])
    stops = [until] if isinstance(until, str) else until
    if not isinstance(stops, list | tuple) or not all(isinstance(stop, str) for stop in stops):
        raise UserError(f"generation_kwargs: until must be a string or a list of strings, got {until!r:.60}")
    lengths = {name: _as(int, name, left.pop(name)) for name in _LENGTH_NAMES if name in left}
    if len(set(lengths.values())) > 1:
        raise UserError(f"generation_kwargs: {lengths} set different lengths; remove all but one")
    sample = left.pop("do_sample", None)
    temperature = _as(float, "temperature", left.pop("temperature", 1.0 if sample else 0.0))
    settings = {
        "stop": [stop for stop in stops if stop],
        "max_new_tokens": next(iter(lengths.values()), max_gen_toks),
        "temperature": 0.0 if sample is False else temperature,
        "top_p": _as(float, "top_p", left.pop("top_p", 1.0)),
        "top_k": _as(int, "top_k", left.pop("top_k", 0)),
    }
    if left:
        raise UserError(f"generation_kwargs: colm_jax has no setting {', '.join(sorted(left))}")
    return settings


def _advance(bar: console.Bar, before: int, done: int) -> None:
    """Show the progress of one of several calls."""
    bar.to(before + done)


def _as(kind: type, name: str, value: Any) -> Any:
    """Convert a value of generation_kwargs to a number; YAML and --gen_kwargs have some as text."""
    try:
        number = kind(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or (isinstance(value, float) and number != value):
        raise UserError(
            f"generation_kwargs: {name} must be a {'whole ' if kind is int else ''}number, got {value!r:.60}"
        )
    return number


def run_harness(arguments: Sequence[str]) -> None:
    """Run the harness's own command line, with the model `colm_jax` registered."""
    from lm_eval.__main__ import cli_evaluate

    before = sys.argv
    sys.argv = ["colm lm_eval", *arguments]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
