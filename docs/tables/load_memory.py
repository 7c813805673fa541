"""Measure the peak resident memory of loading a generated checkpoint, in a separate process; prints JSON.

    python -m docs.tables.load_memory DIR [DATA FSDP TENSOR]

The checkpoint has the sizes of TinyLlama 1.1B in bfloat16, 2.2 GB, in two shards; its files are sparse, all zeros.
"""

import argparse
import json
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from colm_jax.checkpoints.families import from_huggingface, to_huggingface
from colm_jax.checkpoints.huggingface import load_model
from colm_jax.checkpoints.layout import stored_shapes
from colm_jax.models.config import ModelConfig
from colm_jax.models.rope_config import Rope
from colm_jax.parallel import make_mesh
from tests.tiny import write_model

CONFIG = ModelConfig(
    family="llama",
    vocab_size=32000,
    width=2048,
    depth=22,
    heads=32,
    kv_heads=4,
    head_dim=64,
    ff=5632,
    context=2048,
    rope=Rope(10000.0),
    rms_eps=1e-5,
    tied=False,
)


def write_zeros(directory: Path) -> int:
    """Write the checkpoint and return the bytes of its largest tensor."""
    directory.mkdir(parents=True)
    config = to_huggingface(CONFIG, "bfloat16", 1, 2)
    (directory / "config.json").write_text(json.dumps(config))
    shapes = stored_shapes(from_huggingface(config, "config"))
    files: dict[str, dict] = {"model-1.safetensors": {}, "model-2.safetensors": {}}
    for i, (name, shape) in enumerate(shapes.items()):
        files[f"model-{1 + i % 2}.safetensors"][name] = shape
    for file, tensors in files.items():
        header, offset = {}, 0
        for name, shape in tensors.items():
            end = offset + 2 * int(np.prod(shape))
            header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (directory / file).open("wb") as opened:
            opened.write(len(text).to_bytes(8, "little") + text)
            opened.truncate(8 + len(text) + offset)
    index = {"weight_map": {name: file for file, tensors in files.items() for name in tensors}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return max(2 * int(np.prod(shape)) for shape in shapes.values())


def resident(kind: str) -> int:
    """Return VmRSS (current) or VmHWM (peak), in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind))
    return 1024 * int(line.split()[1])


def main() -> None:
    """Print the peak, in bytes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("mesh", type=int, nargs="*", help="DATA FSDP TENSOR; without them, the default mesh")
    arguments = parser.parse_args()
    folder = arguments.folder
    largest, mesh = write_zeros(folder / "big"), make_mesh(*arguments.mesh)
    load_model(write_model(folder / "small"), "bfloat16", mesh)  # imports, compiler, thread pools
    before = resident("VmRSS")
    decoder, _ = load_model(folder / "big", "bfloat16", mesh)
    leaves = jax.tree.leaves(nnx.state(decoder))
    stays = sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards)
    print(
        json.dumps(
            {
                "checkpoint": sum(file.stat().st_size for file in (folder / "big").glob("*.safetensors")),
                "largest": largest,
                "on_devices": stays,
                "peak": resident("VmHWM") - before,
            }
        )
    )


if __name__ == "__main__":
    main()
