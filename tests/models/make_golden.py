"""Makes golden/*.npz: what transformers computes, for environments without PyTorch.

Needs torch and transformers, nothing of colm_jax. Made with transformers 5.23.0, torch 2.13.0 (CPU):

    python tests/models/make_golden.py ../shared/models

Each file holds `tokens` [T] (BOS, then random ids over the whole context), `positions` (every 16th) and `logits`
[positions, V], float32. `tiny.npz` belongs to a random model whose weights are made anew by `tiny_weights`.
"""

import sys
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden"
SHARED_MODELS = ("stories260k", "babyllama-105", "babyllama-361", "babyllama-105-colm")
STRIDE = 16

# Everything a converter could get wrong by assuming: an untied head, head_dim apart from hidden_size / heads, grouped
# heads, RoPE theta and eps far from their defaults.
TINY_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 61,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "intermediate_size": 80,
    "max_position_embeddings": 256,
    "rope_parameters": {"rope_theta": 177.0, "rope_type": "default"},
    "rms_norm_eps": 0.03,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
}


def tiny_weights() -> dict[str, np.ndarray]:
    """Every tensor of the tiny model under its checkpoint name, drawn in this order from one seed."""
    d, heads, kv, h, f, v = 48, 6, 2, 10, 80, 61
    layer = {
        "input_layernorm": (d,),
        "self_attn.q_proj": (heads * h, d),
        "self_attn.k_proj": (kv * h, d),
        "self_attn.v_proj": (kv * h, d),
        "self_attn.o_proj": (d, heads * h),
        "post_attention_layernorm": (d,),
        "mlp.gate_proj": (f, d),
        "mlp.up_proj": (f, d),
        "mlp.down_proj": (d, f),
    }
    shapes = {"model.embed_tokens": (v, d), "model.norm": (d,), "lm_head": (v, d)}
    shapes |= {f"model.layers.{i}.{name}": shape for i in range(3) for name, shape in layer.items()}
    rng = np.random.default_rng(7)
    weights = {}
    for name, shape in shapes.items():
        scale = 0.3 if len(shape) == 1 else 1.4 * shape[1] ** -0.5  # sharp attention: position errors must show
        weights[f"{name}.weight"] = (scale * rng.standard_normal(shape) + (len(shape) == 1)).astype(np.float32)
    return weights


def random_tokens(vocab_size: int, context: int) -> np.ndarray:
    """BOS (1), then random ids over the whole context: neither special ones nor the last (the deferral token)."""
    tokens = np.random.default_rng(vocab_size * context).integers(3, vocab_size - 1, context)
    tokens[0] = 1
    return tokens


def main(models: Path) -> None:
    """Writes every golden file."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    def write(name: str, model) -> None:
        tokens = random_tokens(model.config.vocab_size, model.config.max_position_embeddings)
        positions = np.arange(STRIDE - 1, len(tokens), STRIDE)
        with torch.no_grad():
            logits = model.eval()(torch.tensor(tokens)[None]).logits[0].float().numpy()
        np.savez_compressed(GOLDEN / f"{name}.npz", tokens=tokens, positions=positions, logits=logits[positions])

    GOLDEN.mkdir(exist_ok=True)
    for name in SHARED_MODELS:
        write(name, LlamaForCausalLM.from_pretrained(models / name, dtype=torch.float32))
    tiny = LlamaForCausalLM(LlamaConfig(**TINY_CONFIG))
    tiny.load_state_dict({name: torch.tensor(value) for name, value in tiny_weights().items()}, strict=True)
    write("tiny", tiny)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
