"""`colm bench guests`: decoding with an expert of another tokenizer, against the sum of its parts.

Requests run one at a time under strategy `random`, which forces how many spans the guest writes. The parts are the
base's decode steps, at the time that a step takes the base alone, and the guest's calls, which are recorded and asked
for once more, without the base. What the whole takes beyond them is what joins the two: text between tokens, the base's
reading of the guest's spans, and the host.
"""

import time
from collections.abc import Sequence
from statistics import median
from typing import Any

from colm_jax.bench.timing import Announce, Figure, machine
from colm_jax.decoding.requests import Generation
from colm_jax.errors import UserError
from colm_jax.experts.guest import GuestExpert
from colm_jax.experts.protocol import Call, Written
from colm_jax.settings.bench import GuestsBench
from colm_jax.settings.generation import GenerationSettings
from colm_jax.team import CoLM

_PROMPTS = (
    "Once upon a time, there was a little girl named Lily. One day,",
    "Tom had 16 red apples. He gave 3 of them to his friend, and then",
)


class _Recorded(GuestExpert):
    """A guest that keeps the calls it gets, and what it wrote."""

    calls: list[list[Call]]
    written: list[Written]

    def start(self, calls: Sequence[Call]) -> None:
        """Keep the calls and answer them."""
        self.calls.append(list(calls))
        super().start(calls)

    def finished(self, wait: bool) -> list[Written]:
        """Keep what is finished."""
        found = super().finished(wait)
        self.written += found
        return found


def measure(settings: GuestsBench, announce: Announce = lambda name: None) -> tuple[list[Figure], dict[str, Any]]:
    """Run the benchmark; return the figures and the measurements.

    Args:
      settings: models and amount of work.
      announce: callback(name), called before each piece of work; `pieces` is their number.

    Raises:
      UserError: as `CoLM.from_pretrained`; the expert writes nothing.
    """
    announce("loading")
    if settings.base is None or settings.expert is None:
        raise UserError("bench guests needs --base and --expert")
    team = CoLM.from_pretrained(settings.base, [settings.expert], spans="text", dtype=settings.dtype or "float32")
    (guest,) = team.experts
    assert isinstance(guest, GuestExpert)
    guest.__class__ = _Recorded  # the same guest, which also keeps what it is asked
    assert isinstance(guest, _Recorded)
    guest.calls, guest.written = [], []

    def write(strategy: str) -> list[Generation]:
        own = GenerationSettings(
            strategy=strategy, rate=settings.rate, max_new_tokens=settings.new_tokens, batch_size=1
        )
        return [answer for i, prompt in enumerate(_PROMPTS) for answer in team.generate([prompt], settings=own, seed=i)]

    def timed(work: Any, *arguments: Any) -> float:
        begun = time.perf_counter()
        work(*arguments)
        return time.perf_counter() - begun

    def again(calls: Sequence[Sequence[Call]]) -> None:
        for call in calls:
            guest.start(call)
            guest.finished(wait=True)
        for sequence in {one.sequence for call in calls for one in call}:
            guest.release(sequence)

    rounds: dict[str, list[float]] = {"whole": [], "base": [], "guest": []}
    counts: dict[str, int] = {}
    for turn in range(settings.repeats + 1):
        guest.calls.clear()
        guest.written.clear()
        announce("whole")
        steps, passes = team.engine.base_steps, guest.passes
        whole = timed(write, "random")
        calls, written = list(guest.calls), [each for each in guest.written if each.unit is not None]
        if not written:
            raise UserError(f"{settings.expert}: wrote no span; raise --rate or --new_tokens")
        counts = {
            "base_steps": team.engine.base_steps - steps,
            "guest_passes": guest.passes - passes,
            "spans": len(written),
            "tokens_computed": sum(each.computed for each in guest.written),
        }
        announce("base alone")
        steps = team.engine.base_steps
        alone = timed(write, "base") / max(team.engine.base_steps - steps, 1)
        announce("guest alone")
        asked = timed(again, calls)
        if turn:  # the first round compiles
            for name, seconds in (("whole", whole), ("base", alone * counts["base_steps"]), ("guest", asked)):
                rounds[name].append(seconds)
    shares = [whole / (base + own) for whole, base, own in zip(rounds["whole"], rounds["base"], rounds["guest"])]
    figures = [
        Figure(
            f"{100 * settings.rate:g} % of spans by the guest: time / that of its parts", median(shares), at_most=1.25
        ),
        Figure("tokens that the guest computes, a span", counts["tokens_computed"] / counts["spans"], at_most=2.5),
        Figure("passes of the guest, a span", counts["guest_passes"] / counts["spans"]),
    ]
    facts = {"machine": machine(False), "settings": vars(settings), "seconds": rounds, "counts": counts}
    return figures, facts | {"left_out": {}}


def pieces(settings: GuestsBench) -> int:
    """Return the number of pieces of work of `measure`."""
    return 1 + 3 * (settings.repeats + 1)
