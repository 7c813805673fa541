"""Tokenizers of GGUF files: as transformers reads them, and as llama.cpp does where transformers does not."""

import gguf
import pytest
from transformers import AutoTokenizer
from transformers.integrations.gguf import gguf_tokenizer_mapping

from colm_jax.checkpoints.directory import resolve
from colm_jax.checkpoints.gguf.patterns import PATTERNS, WHOLE_WORDS
from colm_jax.errors import UserError
from colm_jax.text.tokenizer import load_tokenizer
from tests.checkpoints.gguf.test_real_models import PAGE
from tests.checkpoints.gguf.write import CONFIGS, write_tiny

NORMAL, CONTROL, USER, UNUSED = 1, 3, 4, 5


def stand_ins():
    """The characters that stand for the 256 bytes in byte-level vocabularies."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


WORDS = ["hi", "in", "Ġt", "ĠĠ", "ĊĊ", "12", "ct", "'s", "ĠĠĠĠ", "123", "ĠĊ"]
SPECIAL = {"<|begin|>": CONTROL, "<|end|>": CONTROL, "<think>": USER, "[PAD1]": UNUSED}
MERGES = ["h i", "i n", "Ġ t", "Ġ Ġ", "Ċ Ċ", "1 2", "c t", "' s", "ĠĠ ĠĠ", "12 3", "Ġ Ċ"]


def write_byte_level(file, pre, words=WORDS, **flags):
    """A model with a byte-level vocabulary; `flags` are further keys of the tokenizer."""
    tokens = [*stand_ins(), *words, *SPECIAL]

    def add_tokenizer(writer: gguf.GGUFWriter, size: int):
        writer.add_tokenizer_model("gpt2")
        if pre is not None:
            writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types([*[NORMAL] * (len(tokens) - len(SPECIAL)), *SPECIAL.values()])
        writer.add_token_merges(MERGES)
        writer.add_bos_token_id(tokens.index("<|begin|>"))
        writer.add_eos_token_id(tokens.index("<|end|>"))
        for key, value in flags.items():
            add = writer.add_bool if isinstance(value, bool) else writer.add_string
            add(f"tokenizer.{key.replace('__', '.')}", value)

    return write_tiny(file, config={**CONFIGS["llama"], "vocab_size": len(tokens)}, add_tokenizer=add_tokenizer)


@pytest.mark.parametrize("pre", [*PATTERNS, None])
def test_kinds_of_byte_level_bpe_split_as_transformers(pre, tmp_path):
    file = write_byte_level(tmp_path / "tiny.gguf", pre, ggml__add_bos_token=False)
    ours = load_tokenizer(resolve(file))
    page = PAGE.replace("<|endoftext|>", "")  # which transformers adds to a vocabulary that lacks it
    text = f"{page} hihi <think>12312</think><|end|> \u4f60\u597d hi's HI'S [PAD1]"
    ids = ours.encode(text)
    assert ours.backend.decode(ids) == text
    if pre == "deepseek-v3":  # transformers reads it as another kind
        return
    theirs = AutoTokenizer.from_pretrained(str(tmp_path), gguf_file=file.name)
    assert ids == theirs(text)["input_ids"]
    assert pre is None or (pre in gguf_tokenizer_mapping.GGUF_PRE_TOKENIZER_SPLITS) == (len(PATTERNS[pre][0]) > 90)


def test_words_are_whole_whatever_the_merges_in_kinds_that_say_so(tmp_path):
    for pre, expected in (("llama-bpe", ["quiz"]), ("qwen2", ["q", "u", "i", "z"])):
        file = write_byte_level(tmp_path / f"{pre}.gguf", pre, [*WORDS, "quiz"], ggml__add_bos_token=False)
        tokenizer = load_tokenizer(resolve(file))
        assert tokenizer.backend.convert_ids_to_tokens(tokenizer.encode("quiz")) == expected
        assert (pre in WHOLE_WORDS) == (len(expected) == 1)


@pytest.mark.parametrize(
    ("pre", "flags", "expected"),
    [
        ("qwen2", {}, ["hi"]),
        ("llama-bpe", {}, ["<|begin|>", "hi"]),
        ("llama-bpe", {"ggml__add_bos_token": False}, ["hi"]),
        ("qwen2", {"ggml__add_bos_token": True, "ggml__add_eos_token": True}, ["<|begin|>", "hi", "<|end|>"]),
    ],
)
def test_text_begins_and_ends_as_the_file_says(pre, flags, expected, tmp_path):
    tokenizer = load_tokenizer(resolve(write_byte_level(tmp_path / "tiny.gguf", pre, **flags)))
    assert tokenizer.backend.convert_ids_to_tokens(tokenizer.encode("hi")) == expected
    assert tokenizer.backend.convert_ids_to_tokens(tokenizer.encode("<|begin|>hi"))[:2] == ["<|begin|>", "hi"]


def test_types_of_tokens_decide_how_they_are_read(tmp_path):
    tokenizer = load_tokenizer(resolve(write_byte_level(tmp_path / "tiny.gguf", "qwen2")))
    backend = tokenizer.backend
    assert backend.convert_ids_to_tokens(tokenizer.encode_plain("a<|end|>b<think>c")) == [
        *"a",
        "<|end|>",
        "b",
        "<think>",
        "c",
    ]
    assert tokenizer.decode(tokenizer.encode_plain("a<|end|>b<think>c")) == "ab<think>c"
    assert "[PAD1]" not in backend.get_vocab()
    assert tokenizer.words[-1] == "<think>"


def test_kind_that_is_not_known_is_an_error_that_names_it(tmp_path):
    with pytest.raises(UserError, match=r"tiny\.gguf: tokenizer\.ggml\.pre is 'viking', which is not supported; known"):
        resolve(write_byte_level(tmp_path / "tiny.gguf", "viking"))


def test_ends_of_turns_in_the_chat_template_end_a_text(tmp_path):
    for template, expected in (("{{ m }}<|end|>", 1), ("{{ m }}", 1)):
        file = write_byte_level(tmp_path / "tiny.gguf", "qwen2", chat_template=template)
        tokenizer = load_tokenizer(resolve(file))
        assert tokenizer.backend.chat_template == template
        assert len(tokenizer.eos_ids) == expected


SCORED = {"▁": -9, "a": -8, "b": -7, "c": -6, "▁a": -1, "ab": -2, "bc": -3, "▁ab": -4, "abc": -5, "▁▁": -5.5}


@pytest.mark.parametrize("architecture", ["llama", "phi3"])
def test_sentencepiece_merges_by_score(architecture, tmp_path):
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *SCORED, "<|user|>"]
    scores = [0.0] * 259 + list(map(float, SCORED.values())) + [0.0]

    def add_tokenizer(writer: gguf.GGUFWriter, size: int):
        writer.add_tokenizer_model("llama")
        writer.add_token_list(tokens)
        writer.add_token_scores(scores)
        writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * len(SCORED), 3])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)

    name = {"llama": "llama", "phi3": "phi3"}[architecture]
    config = {**CONFIGS[name], "vocab_size": len(tokens)}
    file = write_tiny(tmp_path / "tiny.gguf", name, config=config, add_tokenizer=add_tokenizer)
    ours = load_tokenizer(resolve(file))
    assert ours.backend.convert_ids_to_tokens(ours.encode("abc b")) == ["<s>", "▁a", "bc", "▁", "b"]
    theirs = AutoTokenizer.from_pretrained(str(tmp_path), gguf_file=file.name)
    for text in ("abc", "a b c", "bc ab</s>", "x\u00e9\n\U0001f600 ab", "ab  c", PAGE.replace("▁", "")):
        assert ours.encode(text) == theirs(text)["input_ids"], text
        assert ours.decode(ours.encode(text)) == text.replace("</s>", ""), text
    # As llama.cpp and the tokenizer.json of Llama 2: a space goes before every text, and after every special token.
    # transformers' reading of GGUF omits both where the text begins with one itself, and the second in Llama.
    assert ours.backend.convert_ids_to_tokens(ours.encode_plain("a</s>a")) == ["▁a", "</s>", "▁a"]
    assert ours.backend.convert_ids_to_tokens(ours.encode_plain(" ab")) == ["▁", "▁ab"]
    after = ours.backend.convert_ids_to_tokens(ours.encode_plain("<|user|>\nab"))[1:]
    assert after == (["▁ab"] if architecture == "phi3" else ["▁", "<0x0A>", "ab"]), "white space after special tokens"
