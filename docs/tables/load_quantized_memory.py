"""Measure the peak resident memory of loading a generated int4 checkpoint, in a separate process; prints JSON.

    python -m docs.tables.load_quantized_memory DIR [GIGABYTES]

The checkpoint (AWQ, groups of 128) has layers of the sizes of Llama 3 8B, as many as make up the size, by default
1 GB. Its file is sparse, all zeros.
"""

import argparse
import json
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from colm_jax.checkpoints.families import to_huggingface
from colm_jax.checkpoints.huggingface import load_model
from colm_jax.checkpoints.layout import stored_shapes
from colm_jax.models.config import ModelConfig
from colm_jax.models.quantized import Quantized
from colm_jax.models.rope_config import Rope
from colm_jax.parallel import make_mesh
from docs.tables.load_memory import resident
from tests.tiny import write_model

GROUP = 128
_BYTES = {"I32": 4, "F16": 2, "BF16": 2}


def config_of(depth: int) -> ModelConfig:
    """Return the model with so many layers. Its vocabulary is small, so that the largest tensors are quantised."""
    sizes = {"width": 4096, "depth": depth, "heads": 32, "kv_heads": 8, "head_dim": 128, "ff": 14336, "context": 8192}
    return ModelConfig(family="llama", vocab_size=4096, rope=Rope(5e5), rms_eps=1e-5, tied=False, **sizes)


def tensors_of(depth: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the type and shape of every tensor."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, shape in stored_shapes(config_of(depth)).items():
        if not name.endswith("proj.weight"):
            found[name] = "BF16", shape
            continue
        module, (out, width) = name.removesuffix("weight"), shape
        found[module + "qweight"] = "I32", (width, out // 8)
        found[module + "qzeros"] = "I32", (width // GROUP, out // 8)
        found[module + "scales"] = "F16", (width // GROUP, out)
    return found


def size_of(tensors: dict[str, tuple[str, tuple[int, ...]]]) -> int:
    """Return the bytes of tensors."""
    return sum(_BYTES[kind] * int(np.prod(shape)) for kind, shape in tensors.values())


def write_zeros(directory: Path, size: int) -> None:
    """Write a checkpoint of at least so many bytes."""
    depth = 1
    while size_of(tensors_of(depth)) < size:
        depth += 1
    directory.mkdir(parents=True)
    settings = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
    config = to_huggingface(config_of(depth), "bfloat16", 1, 2)
    (directory / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    header, offset = {}, 0
    for name, (kind, shape) in tensors_of(depth).items():
        end = offset + _BYTES[kind] * int(np.prod(shape))
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (directory / "model.safetensors").open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        opened.truncate(8 + len(text) + offset)


def main() -> None:
    """Print the peak, in bytes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("gigabytes", type=float, nargs="?", default=1.0)
    arguments = parser.parse_args()
    folder, mesh = arguments.folder, make_mesh()
    write_zeros(folder / "big", int(1e9 * arguments.gigabytes))
    load_model(write_model(folder / "small"), "bfloat16", mesh)  # imports, compiler, thread pools
    before = resident("VmRSS")
    decoder, _ = load_model(folder / "big", "bfloat16", mesh, packed=True, stacked=False)
    state = nnx.state(decoder)
    stays = sum(shard.data.nbytes for leaf in jax.tree.leaves(state) for shard in leaf.addressable_shards)
    quantised = [
        v for v in jax.tree.leaves(state, is_leaf=lambda v: isinstance(v, Quantized)) if isinstance(v, Quantized)
    ]
    print(
        json.dumps(
            {
                "checkpoint": (folder / "big" / "model.safetensors").stat().st_size,
                "quantised_kernels": len(quantised),
                "largest": max(2 * int(np.prod(shape)) for shape in stored_shapes(decoder.config).values()),
                "on_devices": stays,
                "peak": resident("VmHWM") - before,
            }
        )
    )


if __name__ == "__main__":
    main()
