"""What batching expert calls saves: a simulation of batches in which texts defer at random, counted in base steps.

    python -m docs.tables.batching

A step of the base costs 1 for all texts of the batch together, a pass of the expert `cost`. Each line gives the cost
per token, as a ratio to that of the best fixed number of waiting texts, of calling the expert at once and of waiting as
many steps as a pass costs (the default, `ExpertBatching`).
"""

import argparse

import numpy as np

TOKENS, TEXTS = 128, 8  # of a text; texts a slot
BATCHES, COSTS, RATES = (4, 8, 16, 32), (2, 4, 8, 16), (0.05, 0.2, 0.5)


def cost_per_token(batch: int, cost: int, rate: float, texts: int, steps: float, seed: int = 0) -> float:
    """Base steps per written token, with `ExpertBatching(texts, steps)`; the rules of `colm_jax.decoding.loop`."""
    rng = np.random.default_rng(seed)
    queue, spent = batch * (TEXTS - 1), 0
    written, waits, waited = np.zeros(batch, int), np.zeros(batch, bool), np.zeros(batch, int)
    alive = np.ones(batch, bool)
    while alive.any():
        able = alive & ~waits
        if waits.sum() >= texts or (waits & (waited >= steps)).any() or not able.any():
            spent += cost
            written += waits
            waits[:] = False
        else:
            spent += 1
            waited = np.where(waits, waited + 1, 0)
            asks = able & (rng.random(batch) < rate)
            waits |= asks
            written += able & ~asks
        for slot in np.flatnonzero(alive & (written >= TOKENS)):
            alive[slot], queue = queue > 0, queue - 1
            written[slot] = 0
    return spent / (batch * TEXTS * TOKENS)


def ratios(batch: int, cost: int, rate: float) -> tuple[int, float, float]:
    """The best number of waiting texts, and what calling at once and the default cost in terms of it."""
    fixed = {texts: cost_per_token(batch, cost, rate, texts, np.inf) for texts in range(1, batch + 1)}
    best = min(fixed, key=lambda texts: fixed[texts])
    at_once, default = cost_per_token(batch, cost, rate, 1, 0), cost_per_token(batch, cost, rate, batch, cost)
    return best, at_once / fixed[best], default / fixed[best]


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(f"{'batch':>5} {'pass':>5} {'rate':>5} {'best number':>12} {'at once':>8} {'default':>8}")
    defaults = []
    for batch in BATCHES:
        for cost in COSTS:
            for rate in RATES:
                best, at_once, default = ratios(batch, cost, rate)
                defaults.append(default)
                print(f"{batch:5} {cost:5} {rate:5.0%} {best:12} {at_once:8.2f} {default:8.2f}", flush=True)
    within = sum(default <= 1.1 for default in defaults)
    print(f"\ndefault: within a tenth in {within} of {len(defaults)}, at worst {max(defaults):.2f}")


if __name__ == "__main__":
    main()
