"""Measure the peak resident memory of loading a generated GGUF file, in a separate process; prints JSON.

    python -m docs.tables.gguf_memory DIR [--type Q4_0] [--depth 22]

The model has the sizes of TinyLlama 1.1B, by default in Q8_0: 1.2 GB. Its weights are one random matrix of each shape,
repeated for every layer.
"""

import argparse
import json
import multiprocessing
import time
from pathlib import Path

import gguf
import jax
import numpy as np
from flax import nnx
from gguf import quants
from gguf.constants import GGMLQuantizationType

from colm_jax.checkpoints.directory import resolve
from colm_jax.checkpoints.huggingface import load_model, match_tensors
from colm_jax.parallel import make_mesh
from docs.tables.load_memory import resident
from tests.tiny import write_model

_WIDTH, _FF, _KEYS, _VOCABULARY = 2048, 5632, 256, 32000
_KERNELS = {
    "attn_q": (_WIDTH, _WIDTH),
    "attn_k": (_KEYS, _WIDTH),
    "attn_v": (_KEYS, _WIDTH),
    "attn_output": (_WIDTH, _WIDTH),
    "ffn_gate": (_FF, _WIDTH),
    "ffn_up": (_FF, _WIDTH),
    "ffn_down": (_WIDTH, _FF),
}


def write(file: Path, kind: GGMLQuantizationType, depth: int) -> None:
    """Write the model."""
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(2048)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(depth)
    writer.add_feed_forward_length(_FF)
    writer.add_head_count(32)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    words = [f"t{i}" for i in range(_VOCABULARY - 3)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *words])
    writer.add_token_scores([0.0] * _VOCABULARY)
    writer.add_token_types([2, 3, 3, *[1] * len(words)])
    writer.add_eos_token_id(2)
    rng, made = np.random.default_rng(0), {}

    def add(name: str, shape: tuple[int, int]) -> None:
        if shape not in made:
            made[shape] = quants.quantize(rng.standard_normal(shape, np.float32) / 50, kind)
        writer.add_tensor(name, made[shape], raw_dtype=kind)

    for name in ("token_embd.weight", "output.weight"):
        add(name, (_VOCABULARY, _WIDTH))
    writer.add_tensor("output_norm.weight", np.ones(_WIDTH, np.float32))
    for layer in range(depth):
        for name, shape in _KERNELS.items():
            add(f"blk.{layer}.{name}.weight", shape)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(_WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Print the peak, in bytes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--type", default="Q8_0", choices=["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
    parser.add_argument("--depth", type=int, default=22, help="layers (default: 22)")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    flags = parser.parse_args()
    file, mesh = flags.folder / f"big.{flags.type}.gguf", make_mesh()
    flags.folder.mkdir(parents=True, exist_ok=True)
    if not file.exists():  # in another process, whose memory does not count
        arguments = file, GGMLQuantizationType[flags.type], flags.depth
        writing = multiprocessing.get_context("spawn").Process(target=write, args=arguments)
        writing.start()
        writing.join()
    load_model(write_model(flags.folder / "small"), flags.dtype, mesh)  # imports, compiler, thread pools
    directory = resolve(file)
    largest = max(4 * int(np.prod(held.tensor.shape)) for held in match_tensors(directory))
    before, start = resident("VmRSS"), time.monotonic()
    decoder, _ = load_model(directory, flags.dtype, mesh)
    seconds, leaves = time.monotonic() - start, jax.tree.leaves(nnx.state(decoder))
    print(
        json.dumps(
            {
                "file": file.stat().st_size,
                "largest": largest,  # of a dequantised tensor, in float32
                "on_devices": sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards),
                "peak": resident("VmHWM") - before,
                "seconds": round(seconds, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
