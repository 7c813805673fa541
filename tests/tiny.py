"""Tiny models and tokenizers for tests: a random Llama directory as another tool would have written it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tokenizers
from flax import nnx
from tokenizers import decoders, models, pre_tokenizers, processors

from colm_jax.checkpoints.families import to_huggingface
from colm_jax.checkpoints.huggingface import DTYPES, save_tensors, to_tensors
from colm_jax.checkpoints.team import load_base, make_gate, save_team
from colm_jax.models.config import ModelConfig
from colm_jax.models.decoder import Decoder
from colm_jax.models.rope_config import Rope
from colm_jax.parallel import make_mesh

SPECIAL = ("<unk>", "<s>", "</s>")
WORDS = (*SPECIAL, *" abcdefghijklmnopqrstuvwxyz.?")  # one word per character
CHAT_TEMPLATE = (
    "{{ '<s>' }}{% for m in messages %}{{ m['role'][0] + '?' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a?' }}{% endif %}"
)
CONFIG = ModelConfig(
    family="llama",
    vocab_size=32,
    width=32,
    depth=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    ff=48,
    context=128,
    rope=Rope(10000.0),
    rms_eps=1e-5,
    tied=False,
)


def tiny_config(**fields: Any) -> ModelConfig:
    """CONFIG with some fields changed."""
    return ModelConfig(**{**vars(CONFIG), **fields})


def tiny_decoder(dtype: str = "float32", seed: int = 0, **fields: Any) -> Decoder:
    """A random decoder on one device."""
    return Decoder(tiny_config(**fields), nnx.Rngs(seed), DTYPES[dtype])


@jax.jit(static_argnames="graph")
def forward(graph, state, tokens):
    """The plain pass: hidden states [B,T,D] and logits [B,T,V]."""
    decoder = nnx.merge(graph, state)
    hidden, _ = decoder(tokens)
    return hidden, decoder.logits(hidden)


def run(decoder: Decoder, tokens: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """`forward` of a decoder, jitted."""
    return forward(*nnx.split(decoder), tokens)


def write_tokenizer(
    directory: Path,
    words: Sequence[str] = WORDS,
    chat_template: str | list[dict[str, str]] | None = None,
    bos: bool = True,
    eos: bool = False,
    begin: str = "<s>",
) -> Path:
    """A tokenizer of one word per character; `words` begin with SPECIAL, the last may be <|defer|>.

    It puts BOS before a text, EOS after it, where `bos` and `eos` say so; `begin` is its BOS.
    """
    directory.mkdir(parents=True, exist_ok=True)
    backend = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([word for word in words if word.startswith("<")])
    single = " ".join([*[begin] * bos, "$A", *["</s>"] * eos])
    ids = [(word, words.index(word)) for word in {begin, "</s>"} & {*words}]
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    backend.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "bos_token": begin}
    settings |= {"eos_token": "</s>"} if "</s>" in words else {}
    settings |= {"chat_template": chat_template} if chat_template else {}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def write_model(
    directory: Path,
    *,
    dtype: str = "float32",
    seed: int = 0,
    words: Sequence[str] = WORDS,
    chat_template: str | None = None,
    **fields: Any,
) -> Path:
    """config.json, model.safetensors and a tokenizer."""
    write_tokenizer(directory, words, chat_template)
    decoder = tiny_decoder(dtype, seed, **fields)
    (directory / "config.json").write_text(json.dumps(to_huggingface(decoder.config, dtype, bos_id=1, eos_id=2)))
    save_tensors(to_tensors(decoder), directory / "model.safetensors")
    return directory


def edit_json(path: Path, **fields: Any) -> None:
    """Sets fields of a JSON file; None removes one."""
    value = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({key: v for key, v in value.items() if v is not None or key not in fields}))


def write_team(directory: Path, base: Path, expert: Path, spread: float = 0.4, seed: int = 0) -> Path:
    """A team directory of these two, with a random gate of which `spread` says how far its p_defer lies from 1/2."""
    decoder = load_base(base, "float32", make_mesh()).decoder
    kernel = spread * np.random.default_rng(seed).normal(size=(decoder.config.width, 1)).astype(np.float32)
    facts = {"experts": [{"model": str(expert), "revision": None}], "threshold": 0.5}
    save_team(directory, decoder, make_gate(kernel), base, "float32", facts)
    return directory
