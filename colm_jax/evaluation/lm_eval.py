"""lm-evaluation-harness over our engine: a team as the harness's model `colm_jax`, so that its tasks are ours.

The harness finds only models that it ships, so its own `lm_eval` command does not know this one: `colm lm_eval ...`
registers it and passes everything else on. Needs the extra `eval`; nothing of it imports PyTorch.
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
from colm_jax.settings.strategies import find_strategy
from colm_jax.team import CoLM, Scored

_LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_DEFAULT_DEVICE = "cuda:0"  # what the harness passes where --device is not given
_AT_ONCE = 32  # texts that are scored together
Pair = tuple[Any, list[int], list[int]]  # of texts (or None), context ids, continuation ids


@register_model("colm_jax")
class ColmLM(TemplateLM):
    """A team as the harness sees it.

    Generation is `CoLM.generate`. Likelihoods are the strategy's: `defer` has the team's marginal, Σ_z P(Z=z) p_z at
    each token; `base` and `expert` have that model's own. A continuation is greedy where every token of it is what
    the strategy would write: at the threshold, for `defer`.
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
        team: CoLM | None = None,
        **unknown: Any,
    ):
        """Loads a team from what stands in --model_args.

        Args:
          base: a Hugging Face directory, team or Hub name.
          expert: likewise; None takes those that the team names, or none.
          expert2: a second expert.
          threshold: η; None: the calibrated one, or 0.5.
          strategy: as of `colm generate`; None: `defer` with a gate, else `base`.
          dtype: of weights, activations and caches.
          expert_dtype: of the experts.
          mesh: devices along data, fsdp and tensor, as in 1x4x2.
          max_gen_toks: of tasks that name no length.
          seed: of sampling, and of strategy `random`.
          batch_size: prompts decoded side by side; "auto" is 8.
          device: must be None or the harness's default: JAX chooses, or JAX_PLATFORMS.
          max_batch_size: must be None.
          team: one that is loaded already, instead of `base`.
          unknown: refused.

        Raises:
          UserError: an argument that is wrong.
        """
        super().__init__()
        if unknown:
            raise UserError(f"--model_args: colm_jax knows no {', '.join(sorted(unknown))}")
        for name, value in (("--device", device), ("--max_batch_size", max_batch_size)):
            if value not in (None, _DEFAULT_DEVICE):
                raise UserError(f"{name} {value}: colm_jax takes none; JAX_PLATFORMS chooses devices")
        if (base is None) == (team is None):
            raise UserError("--model_args: colm_jax needs base=MODEL")
        if batch_size != "auto" and not str(batch_size).isdigit():
            raise UserError(f"--batch_size {batch_size}: a whole number, or auto")
        rows = check_whole("batch_size", 8 if batch_size == "auto" else int(batch_size), 1)
        seed, max_gen_toks = check_seed("seed", seed), check_whole("max_gen_toks", max_gen_toks, 1)
        threshold = None if threshold is None else check_number("threshold", threshold, 0, 1)
        experts = [name for name in (expert, expert2) if name is not None]
        if team is None and base is not None:
            devices, outline = _mesh(mesh), outline_team(base, experts or None)
            strategy = strategy or ("base" if outline.gate_experts is None else "defer")
            find_strategy(strategy, outline.experts, outline.gate_experts)
            with console.bar("loading", bytes_=True) as bar:
                team = CoLM.from_pretrained(
                    base,
                    experts or None,
                    mesh=devices,
                    dtype=dtype,
                    expert_dtype=expert_dtype,
                    progress=lambda model, done, total: bar.to(done, total, model),
                )
        assert team is not None  # one of the two was given
        self.team = team
        self.name = base or "team"
        self.strategy = strategy or ("base" if team.gate is None else "defer")
        find_strategy(self.strategy, len(team.experts), None if team.gate is None else team.gate.kernel.shape[1])
        self.threshold = team.settings(threshold=threshold).threshold
        self.max_gen_toks, self.seed, self.batch_size = max_gen_toks, seed, rows

    def get_model_info(self) -> dict[str, Any]:
        """What the harness notes beside the results."""
        marginal = "the team's marginal" if self.strategy == "defer" else f"the {self.strategy}'s own"
        return {
            "strategy": self.strategy,
            "threshold": self.threshold if self.strategy in ("defer", "compose") else None,
            "likelihood": marginal if self.strategy in ("defer", "base", "expert") else None,
        }

    # Texts and ids.

    @property
    def eot_token_id(self) -> int:
        """What ends a text."""
        return self.team.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What a text without context begins with: BOS, or EOS where there is none."""
        first = self.team.tokenizer.backend.bos_token_id
        return self.eot_token_id if first is None else first

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **unused: Any) -> list[int]:
        """Ids of a text that goes on; BOS is added unless it stands there already, as chat templates write it."""
        tokenizer = self.team.tokenizer
        return tokenizer.encode_plain(string) if add_special_tokens is False else tokenizer.encode_prompt(string)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of a context, and of the continuation as it is read behind it.

        As in the harness, a context's last spaces move to the continuation, and both are read as one text, which is cut
        where the context's ids end. Where a token spans that place, the harness cuts behind it, so that the
        continuation loses its beginning, or everything; here such a token belongs to the continuation, as in training.
        """
        moved = len(context) - len(context.rstrip())
        seam = len(context) - moved
        whole, alone = self.tok_encode(context + continuation), self.tok_encode(context[:seam])
        cut = next((i for i, (a, b) in enumerate(zip(whole, alone)) if a != b), min(len(whole), len(alone)))
        if cut == 0:  # nothing to predict the first token from
            return [self.prefix_token_id], whole[whole[:1] == [self.prefix_token_id] :]
        return whole[:cut], whole[cut:]

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the harness's caches."""
        return str(self.team.tokenizer.directory).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The tokenizer's chat template, where one is asked for."""
        return self.team.tokenizer.backend.chat_template if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as one text."""
        tokenizer = self.team.tokenizer
        if not tokenizer.backend.chat_template:
            raise UserError(f"--apply_chat_template: {tokenizer.directory} has no chat template")
        return Conversation.of({"messages": chat_history}, tokenizer, "--apply_chat_template").apply(
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    # What the harness asks.

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers, those of like settings side by side."""
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
        """Log-likelihoods of continuations behind contexts, and whether they are greedy.

        Raises:
          UserError: a continuation without a token, whose probability would be 1; or one that does not fit.
        """
        pairs: list[Pair] = []
        for i, request in enumerate(requests):
            context, continuation = self._encode_pair(*request.args)
            if not request.args[1] or not continuation:
                raise UserError(
                    f"{_name(request)}: request {i + 1}: the continuation {request.args[1]!r:.60} has no token of "
                    f"its own after {request.args[0][-20:]!r}; an empty choice cannot be compared with others"
                )
            pairs.append((request.args, context, continuation))
        return self._loglikelihood_tokens(pairs)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, in windows of the context where they are longer.

        Raises:
          UserError: a text without a token.
        """
        windows: list[Pair] = []
        owners: list[int] = []
        for i, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            ids = ids[ids[:1] == [self.prefix_token_id] :]  # a text that begins with BOS has one already
            if not ids:
                raise UserError(f"{_name(request)}: request {i + 1}: an empty text has no likelihood")
            # A window's first token is only read: the context holds one token less than it has places.
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
        """For each context and continuation, the continuation's log-probability and whether it is greedy."""
        if self.strategy not in ("defer", "base", "expert"):
            raise UserError(f"strategy={self.strategy}: has no likelihood; tasks of choices take defer, base or expert")
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
                    if requests[i][0] is not None:  # the texts that the harness asked about
                        self.cache_hook.add_partial("loglikelihood", requests[i][0], found[i])
                done += len(numbers)
                bar.to(done)
        return found

    def _likelihood(self, score: Scored) -> tuple[float, bool]:
        """Log-probability of the tokens that count, under the strategy, and whether it would write them all."""
        models = np.column_stack([score.base_log_prob, score.expert_log_probs])[score.mask].astype(np.float64)
        right = score.is_argmax[score.mask]
        if self.strategy == "base":
            return float(models[:, 0].sum()), bool(right[:, 0].all())
        if self.strategy == "expert":
            return float(models[:, 1].sum()), bool(right[:, 1].all())
        assert score.gate_logits is not None  # the strategy was checked
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
        raise UserError(f"mesh={sizes}: three whole numbers, data x fsdp x tensor, as in 1x4x2")
    data, fsdp, tensor = map(int, parts)
    return make_mesh(data, fsdp, tensor)


def _name(request: Any) -> str:
    return getattr(request, "task_name", None) or "task"


def _chunks(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    for first in range(0, len(numbers), _AT_ONCE):
        yield numbers[first : first + _AT_ONCE]


def _generation(given: dict[str, Any], max_gen_toks: int) -> dict[str, Any]:
    """A task's generation_kwargs as `CoLM.generate` takes them; null counts as missing.

    Without do_sample the temperature decides, and is 0 where none is given.

    Raises:
      UserError: a setting that we do not have, or a value of another kind.
    """
    left = {name: value for name, value in given.items() if value is not None}
    until = left.pop("until", [])
    stops = [until] if isinstance(until, str) else until
    if not isinstance(stops, list | tuple) or not all(isinstance(stop, str) for stop in stops):
        raise UserError(f"generation_kwargs: until must be a string or a list of strings, got {until!r:.60}")
    lengths = {name: _as(int, name, left.pop(name)) for name in _LENGTH_NAMES if name in left}
    if len(set(lengths.values())) > 1:
        raise UserError(f"generation_kwargs: {lengths} name different lengths; leave one")
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
        raise UserError(f"generation_kwargs: colm_jax knows no {', '.join(sorted(left))}")
    return settings


def _advance(bar: console.Bar, before: int, done: int) -> None:
    """Show the progress of one of several calls."""
    bar.to(before + done)


def _as(kind: type, name: str, value: Any) -> Any:
    """A value of generation_kwargs as a number; YAML and --gen_kwargs give some as text."""
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
    """The harness's own command line, with the model `colm_jax` known to it."""
    from lm_eval.__main__ import cli_evaluate

    before = sys.argv
    sys.argv = ["colm lm_eval", *arguments]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
