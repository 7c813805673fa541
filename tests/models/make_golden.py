"""Makes golden/*.npz: what transformers computes, for environments without PyTorch.

Needs torch and transformers. Made with transformers 5.23.0 (later families: 5.24.0), torch 2.13.0 (CPU):

    python -m tests.models.make_golden ../shared/models [FAMILY ...]

Each file holds `tokens` [T], `positions` (every 16th) and `logits` [positions, V], float32: for the pretrained models
BOS, then random ids over the whole context; for the random ones of `families.py` its parity text.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from tests.models.families import CONFIGS, tokens, write_family

GOLDEN = Path(__file__).parent / "golden"
SHARED_MODELS = ("stories260k", "babyllama-105", "babyllama-361", "babyllama-105-colm")
STRIDE = 16


def random_tokens(vocab_size: int, context: int) -> np.ndarray:
    """BOS (1), then random ids over the whole context: neither special ones nor the last (the deferral token)."""
    ids = np.random.default_rng(vocab_size * context).integers(3, vocab_size - 1, context)
    ids[0] = 1
    return ids


def transformers_logits(directory: Path, ids: np.ndarray) -> np.ndarray:
    """[T, V] by transformers in float32; every tensor of the directory is used, and none is missing."""
    import torch
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    with torch.no_grad():
        return model.eval()(torch.tensor(ids)[None]).logits[0].numpy()


def main() -> None:
    """Write every golden file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="only these; without any, every file is made")
    arguments = parser.parse_args()
    models = arguments.models

    def write(name: str, directory: Path, ids: np.ndarray) -> None:
        positions = np.arange(STRIDE - 1, len(ids), STRIDE)
        logits = transformers_logits(directory, ids)[positions]
        np.savez_compressed(GOLDEN / f"{name}.npz", tokens=ids, positions=positions, logits=logits)

    from transformers import AutoConfig

    GOLDEN.mkdir(exist_ok=True)
    for name in [] if arguments.families else SHARED_MODELS:
        config = AutoConfig.from_pretrained(models / name)
        write(name, models / name, random_tokens(config.vocab_size, config.max_position_embeddings))
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.families or CONFIGS:
            write(f"family-{name}", write_family(Path(folder) / name, name), tokens())


if __name__ == "__main__":
    main()
