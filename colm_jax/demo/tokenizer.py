"""The demo's tokenizer: a token for each word, digit, and operator with the spaces around it. Used by `demo.pair`."""

import json
import random
import re
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from colm_jax.demo.problems import KINDS, draw_problem

SPACE = "▁"
UNKNOWN, BOS, EOS = "<unk>", "<s>", "</s>"
_PIECE = f"{SPACE}[-+·/=]{SPACE}|{SPACE}?[A-Za-z]+|{SPACE}|[^{SPACE}A-Za-z]"


def vocabulary() -> list[str]:
    """Return every token of the demo's texts: special ones, then digits, then the rest in alphabetical order."""
    rng = random.Random(0)
    found: set[str] = {SPACE}
    for i in range(5000):
        problem = draw_problem(KINDS[i % len(KINDS)], rng)
        found.update(re.findall(_PIECE, (problem.prompt + problem.completion).replace(" ", SPACE)))
    digits = [str(digit) for digit in range(10)]
    return [UNKNOWN, BOS, EOS, *digits, *sorted(found - set(digits))]


def make_tokenizer() -> Tokenizer:
    """Return the tokenizer; it puts BOS before a text, and decoding restores the text exactly."""
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary())}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECE), behavior="isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.Fuse()])
    tokenizer.add_special_tokens([UNKNOWN, BOS, EOS])
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos)]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json for transformers."""
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": UNKNOWN,
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
