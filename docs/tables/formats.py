"""Measures every quantised format and writes the table of docs/families.md:

python -m docs.tables.formats
"""

import argparse
import os

if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"

import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import jax
from flax import nnx

from colm_jax.checkpoints.directory import resolve
from colm_jax.checkpoints.gguf.header import TYPES
from colm_jax.checkpoints.huggingface import load_model
from colm_jax.checkpoints.layout import by_path
from colm_jax.models.quantized import PackedKernel
from colm_jax.parallel import make_mesh
from docs.tables import put_table
from tests.checkpoints.gguf.write import CONFIGS, write_gguf
from tests.checkpoints.quantized.checkpoints import FORMATS, gpt_oss, quantized
from tests.checkpoints.quantized.test_scores import kept, worst
from tests.models.families import weights

DOCS = Path(__file__).parents[1] / "families.md"
BEGIN, END = "<!-- formats -->", "<!-- end of formats -->"
HEAD = "| format | kernels that stay quantised | bytes of them / bfloat16 | error in nats |"
_GGUF = {f"GGUF {kind.name}": kind for kind in sorted(TYPES, key=lambda kind: kind.name)}
ROWS = [*FORMATS, "mxfp4 (gpt-oss)", *_GGUF]


@dataclass(frozen=True)
class Row:
    """What was measured of a format, on a tiny model."""

    kept: int  # kernels that stay quantised
    of: int
    share: float | None  # bytes of what stays quantised, of those in bfloat16
    error: float  # largest difference of log-probabilities from the dequantised weights', float32


@lru_cache
def measure(name: str) -> Row:
    """One format's row."""
    mesh = make_mesh()
    with tempfile.TemporaryDirectory() as folder:
        if name in _GGUF:
            packed = plain = _gguf(Path(folder), name)
        else:
            packed, plain = quantized(name, Path(folder)) if name in FORMATS else gpt_oss(Path(folder))
        decoder = load_model(packed, "float32", mesh, packed=True)[0]
        exact = load_model(plain, "float32", mesh)[0]
        paths, kernels = kept(decoder), by_path(nnx.state(decoder))
        few = [kernels[path].get_value() for path in paths]
        assert all(isinstance(kernel, PackedKernel) for kernel in few)
        whole = sum(2 * by_path(nnx.state(exact))[path].get_value().size for path in paths)
        size = sum(leaf.nbytes for kernel in few for leaf in jax.tree.leaves(kernel))
        of = sum(path.split(".")[-1] in ("kernel", "gate", "up", "down") for path in kernels if "router" not in path)
        return Row(len(paths), of, size / whole if whole else None, worst(decoder, exact))


def _gguf(folder: Path, name: str) -> Path:
    """Return the directory of a GGUF file whose matrices are of one type."""
    config = {**CONFIGS["llama"], "hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
    config |= {"attention_bias": False, "mlp_bias": False}
    drawn = {key: value for key, value in weights(config).items() if "norm" in key or "bias" not in key}
    return resolve(write_gguf(folder / "tiny.gguf", "llama", config, drawn, _GGUF[name]))


def table(rows: dict[str, Row]) -> str:
    """The table, Markdown."""
    lines = [HEAD, "| --- | --- | --- | --- |"]
    for name, row in rows.items():
        if row.share is None:  # all are dequantised
            lines.append(f"| {name} | none | – | – |")
        else:
            lines.append(f"| {name} | {row.kept} of {row.of} | {row.share:.2f} | {row.error:.0e} |")
    return "\n".join(lines)


def main() -> None:
    """Write the table into the page."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    put_table(DOCS, BEGIN, END, table({name: measure(name) for name in ROWS}))


if __name__ == "__main__":
    main()
