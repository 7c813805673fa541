"""The decoding strategies by name: which models each needs, and whether a team can follow it.

`colm_jax.decoding.strategies.register_strategy` adds one.
"""

from dataclasses import dataclass

from colm_jax.errors import UserError


@dataclass(frozen=True)
class Strategy:
    """What a strategy needs; `colm_jax.decoding.strategies` defines how it chooses the next token."""

    name: str
    needs_gate: bool = False  # reports p_defer, follows the threshold
    reads_base: bool = True
    calls: str = "deferred"  # when experts are called: "never", "deferred", "always"
    one_expert: bool = True  # a deferred step calls the most probable expert only
    experts: tuple[int, int | None] = (1, None)  # fewest and most experts of a team
    mixes: bool = False  # a deferred token depends on the base's logits too
    corrects: bool = False  # may retract tokens (colm_jax.decoding.correction)
    by_units: bool = False  # experts may write units outside the loop: it compares no two models' tokens


STRATEGIES = {
    strategy.name: strategy
    for strategy in (
        Strategy("defer", needs_gate=True, by_units=True),
        Strategy("compose", needs_gate=True, one_expert=False, mixes=True),
        Strategy("backtrack", needs_gate=True, mixes=True, corrects=True),
        Strategy("lookahead", needs_gate=True, mixes=True, corrects=True),
        Strategy("base", calls="never", experts=(0, None), by_units=True),
        Strategy("expert", calls="always", reads_base=False, by_units=True),
        Strategy("random", experts=(1, 1), by_units=True),
        Strategy("confidence", calls="always", mixes=True),
        Strategy("contrastive", calls="always", experts=(1, 1), mixes=True),
        Strategy("contrastive_v2", calls="always", experts=(1, 1), mixes=True),
        Strategy("proxy", calls="always", experts=(2, 2), mixes=True),
    )
}


def find_strategy(name: str, experts: int, gate_experts: int | None, resident: bool = True) -> Strategy:
    """Return the named strategy, if this team can follow it.

    Args:
      name: of the strategy.
      experts: how many the team has.
      gate_experts: for how many its gate was trained; None without a gate.
      resident: all experts share the base's tokenizer and its view of the prompt, and are part of the loop.

    Raises:
      UserError: no such strategy, too few or too many experts, no gate for them where one is needed, or one that
        compares tokens of models which are not all resident.
    """
    if not isinstance(name, str) or name not in STRATEGIES:
        raise UserError(f"strategy must be one of {', '.join(STRATEGIES)}, got {name!r}")
    strategy = STRATEGIES[name]
    if not (resident or strategy.by_units):
        others = ", ".join(each.name for each in STRATEGIES.values() if each.by_units)
        raise UserError(
            f"strategy {name!r} compares the models' tokens: it needs experts that share the base's tokenizer and see "
            f"the same prompt, with their weights here; with these, use one of {others}"
        )
    fewest, most = strategy.experts
    if experts < fewest or (most is not None and experts > most):
        wanted = f"{fewest}" if fewest == most else f"at least {fewest}"
        raise UserError(f"strategy {name!r} needs {wanted} expert(s), this team has {experts}")
    if strategy.needs_gate and gate_experts is None:
        raise UserError(
            f"strategy {name!r} needs a gate and this base has none; train one (colm train), or use strategy base, "
            "expert, random or confidence"
        )
    if strategy.needs_gate and gate_experts != experts:
        raise UserError(f"the gate was trained for {gate_experts} expert(s), {experts} given")
    return strategy
