"""What waiting for others costs and saves, simulated: the reason for the default of `Parking`.

`python -m tests.decoding.parking_table` prints, for batches, prices of an expert pass (in steps of the base) and
deferral rates, what a token costs when experts are called at once and when texts wait as many steps as a pass costs
(the default), each as a ratio to what it costs with the best number of texts to wait for.
"""

import numpy as np

TOKENS, TEXTS = 128, 64  # of each text; through the batch


def cost(batch: int, rate: float, price: float, texts: int, steps: float, seed: int = 0) -> float:
    """Steps of the base and passes, in steps of the base, for a token."""
    rng = np.random.default_rng(seed)
    written, waits, waited, alive = (
        np.zeros(batch, int),
        np.zeros(batch, bool),
        np.zeros(batch, int),
        np.ones(batch, bool),
    )
    queue, spent = TEXTS - batch, 0.0
    while alive.any():
        able = alive & ~waits
        if waits.any() and (waits.sum() >= texts or waited.max() >= steps or not able.any()):
            spent += price
            written += waits
            waits[:], waited[:] = False, 0
        else:
            spent += 1
            deferred = able & (rng.random(batch) < rate)
            waits |= deferred
            waited += waits
            written += able & ~deferred
        for slot in np.flatnonzero(alive & (written >= TOKENS)):
            alive[slot], written[slot] = queue > 0, 0
            queue -= 1
    return spent / (TEXTS * TOKENS)


def main() -> None:
    """Prints the table."""
    print("batch  price  rate   best number   at once   default")
    worst = 0.0
    for batch in (4, 8, 16, 32):
        for price in (2, 4, 8, 16):
            for rate in (0.05, 0.2, 0.5):
                fixed = {texts: cost(batch, rate, price, texts, np.inf) for texts in range(1, batch + 1)}
                best = min(fixed, key=lambda texts: fixed[texts])
                default = cost(batch, rate, price, batch, price) / fixed[best]
                worst = max(worst, default)
                print(f"{batch:5d} {price:6d} {rate:5.2f} {best:13d} {fixed[1] / fixed[best]:9.2f} {default:9.2f}")
    print(f"the default at worst: {worst:.2f}")


if __name__ == "__main__":
    main()
