"""Times forms of the product of few rows with a large float32 kernel on a CPU, where reading it should take longest.

    python -m docs.tables.few_rows [--rounds 25]

Every time is that of four kernels [4096, 1024], 67 MB, one after the other; the 10th percentile of rounds that
interleave all forms and numbers of rows.
"""

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

INPUTS, OUTPUTS, KERNELS = 4096, 1024, 4
ROWS = (1, 2, 4, 8, 16, 128)  # the last: a prefill
SLOW = "each_row"  # not timed with the last
HIGHEST = jax.lax.Precision.HIGHEST
keep = jax.lax.optimization_barrier
Form = Callable[[Float[Array, "R I"], Float[Array, "..."]], Float[Array, "R O"]]


def plain(x: Array, kernel: Array) -> Array:
    """Multiply with the kernel [I, O]."""
    return jnp.dot(x, kernel, precision=HIGHEST)


def padded(x: Array, kernel: Array) -> Array:
    """Pad to 8 rows."""
    return plain(jnp.pad(x, ((0, max(8 - len(x), 0)), (0, 0))), kernel)[: len(x)]


def each_row(x: Array, kernel: Array) -> Array:
    """Make a matrix-vector product of every row."""
    return jnp.stack([plain(row, kernel) for row in x])


def input_blocks(x: Array, kernel: Array) -> Array:
    """Add the products with 8 blocks of inputs."""
    parts = kernel.reshape(8, -1, kernel.shape[1])
    return jnp.einsum("rni,nio->nro", x.reshape(len(x), 8, -1), parts, precision=HIGHEST).sum(0)


def transposed(x: Array, kernel: Array) -> Array:
    """Multiply with the kernel [O, I]."""
    return jnp.einsum("ri,oi->ro", x, kernel, precision=HIGHEST)


def swapped(x: Array, kernel: Array) -> Array:
    """Multiply the kernel [O, I] with the transposed rows; without the barriers XLA swaps the operands back."""
    return keep(jnp.dot(kernel, keep(x.T), precision=HIGHEST)).T


def output_blocks(x: Array, kernel: Array) -> Array:
    """Multiply with blocks of outputs [blocks, I, columns]."""
    repeated = jnp.broadcast_to(x, (len(kernel), *x.shape))
    found = jnp.einsum("nri,nio->nro", repeated, kernel, precision=HIGHEST)
    return found.swapaxes(0, 1).reshape(len(x), -1)


def forms() -> dict[str, tuple[Form, Callable[[np.ndarray], np.ndarray]]]:
    """Return each form, and how it stores a kernel [I, O]."""
    found: dict = {form.__name__: (form, np.asarray) for form in (plain, padded, each_row, input_blocks)}
    found |= {form.__name__: (form, np.transpose) for form in (transposed, swapped)}
    for columns in (16, 32, 64, 128, 256):
        store = lambda kernel, n=columns: kernel.reshape(len(kernel), -1, n).swapaxes(0, 1)  # noqa: E731
        found[f"output blocks of {columns}"] = output_blocks, store
    return found


def chain(form: Form) -> Callable:
    """Return a program that multiplies with one kernel after the other."""

    def run(x: Array, kernels: list[Array]) -> Array:
        total = jnp.zeros((len(x), OUTPUTS))
        for kernel in kernels:
            found = form(x, kernel)
            total, x = total + found, x + 1e-9 * found.mean()
        return total

    return jax.jit(run)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    rounds, rng, works = parser.parse_args().rounds, np.random.default_rng(0), {}
    drawn = [rng.standard_normal((INPUTS, OUTPUTS), np.float32) for _ in range(KERNELS)]
    for name, (form, store) in forms().items():
        kernels, program = [jnp.asarray(np.ascontiguousarray(store(kernel))) for kernel in drawn], chain(form)
        for count in ROWS[:-1] if name == SLOW else ROWS:
            x = jnp.asarray(rng.standard_normal((count, INPUTS), np.float32))
            program(x, kernels).block_until_ready()
            works[name, count] = program, x, kernels
    times: dict = {key: [] for key in works}
    for _ in range(rounds):
        for number in rng.permutation(len(works)):
            key = list(works)[number]
            program, x, kernels = works[key]
            start = time.perf_counter()
            program(x, kernels).block_until_ready()
            times[key].append(1000 * (time.perf_counter() - start))
    print("| form | " + " | ".join(map(str, ROWS)) + " |\n| --- |" + " --- |" * len(ROWS))
    for name in forms():
        found = (times.get((name, count)) for count in ROWS)
        shown = (f"{np.percentile(each, 10):.2f}" if each else "" for each in found)
        print(f"| {name.replace('_', ' ')} | " + " | ".join(shown) + " |")


if __name__ == "__main__":
    main()
