"""Damaged GGUF files: loading is correct, or one line that names the file; sizes are checked before memory is taken."""

import struct
import tracemalloc

import gguf
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as Type

from colm_jax.checkpoints.directory import resolve
from colm_jax.checkpoints.gguf.header import read_header
from colm_jax.checkpoints.huggingface import load_model, match_tensors
from colm_jax.cli.main import main
from colm_jax.errors import UserError
from colm_jax.text.tokenizer import load_tokenizer
from tests.checkpoints.gguf.write import TOKENS, write_tiny


def survives(load, file):
    """Return whether it loads; if not, check that the error is one line that names the file."""
    try:
        load()
    except UserError as error:
        assert "\n" not in str(error)
        assert file.name in str(error)
        return False
    return True


def everything(file, mesh):
    directory = resolve(file)
    load_tokenizer(directory)
    load_model(directory, "float32", mesh)


def allocated(load, file):
    """Return whether it loads, and the largest number of bytes that it takes."""
    tracemalloc.start()
    try:
        return survives(load, file), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def string(text):
    return struct.pack("<Q", len(text)) + text


def header(tensors=0, keys=0, version=3, magic=b"GGUF"):
    return magic + struct.pack("<IQQ", version, tensors, keys)


def tensor(name=b"t", shape=(32,), kind=0, offset=0):
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def key(name, kind, value):
    return string(name) + struct.pack("<I", kind) + value


ROOM = bytes(4096)
DAMAGED = {
    "empty": (b"", "the magic number"),
    "other magic": (header(magic=b"GGML"), "does not begin with GGUF"),
    "version 1": (header(version=1), "GGUF version 1; only 2 and 3"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "too many keys": (header(keys=2**63) + ROOM, "metadata: .* items"),
    "too many tensors": (header(tensors=2**60) + ROOM, "tensors: .* items"),
    "a key's name too long": (header(keys=1) + struct.pack("<Q", 2**62) + ROOM, "the name of a key"),
    "a key's name beyond any": (header(keys=1) + string(bytes(2000)) + ROOM, "the name of a key has 2000 bytes"),
    "a tensor's name beyond any": (header(1) + string(bytes(2000)) + ROOM, "the name of a tensor has 2000 bytes"),
    "parts as a list": (
        header(keys=1) + key(b"split.count", 9, struct.pack("<IQ2I", 4, 2, 1, 1)) + ROOM,
        "split.count is no whole number",
    ),
    "tensors as a list": (
        header(keys=1) + key(b"split.tensors.count", 9, struct.pack("<IQ2I", 4, 2, 0, 0)) + ROOM,
        "split.tensors.count is no whole number",
    ),
    "a string too long": (header(keys=1) + key(b"k", 8, struct.pack("<Q", 2**40)) + ROOM, "k: 1099511627776 items"),
    "an array too long": (header(keys=1) + key(b"k", 9, struct.pack("<IQ", 4, 2**61)) + ROOM, "k: .* items of 4 bytes"),
    "strings too many": (header(keys=1) + key(b"k", 9, struct.pack("<IQ", 8, 2**40)) + ROOM, "k: .* items of 8 bytes"),
    "array of arrays": (header(keys=1) + key(b"k", 9, struct.pack("<IQ", 9, 1)) + ROOM, "k is an array of arrays"),
    "no such type": (header(keys=1) + key(b"k", 13, b"") + ROOM, "k has type 13"),
    "not a boolean": (header(keys=1) + key(b"k", 7, b"\2") + ROOM, "k is neither true nor false"),
    "not UTF-8": (header(keys=1) + key(b"k", 8, string(b"\xff")) + ROOM, "k is not UTF-8"),
    "a key twice": (header(keys=2) + 2 * key(b"k", 7, b"\0") + ROOM, "key 'k' occurs twice"),
    "alignment 0": (header(keys=1) + key(b"general.alignment", 4, struct.pack("<I", 0)) + ROOM, "alignment is 0"),
    "alignment 48": (header(keys=1) + key(b"general.alignment", 4, struct.pack("<I", 48)) + ROOM, "alignment is 48"),
    "alignment text": (header(keys=1) + key(b"general.alignment", 8, string(b"x")) + ROOM, "alignment is 'x'"),
    "five axes": (header(1) + tensor(shape=(1, 1, 1, 1, 1)) + ROOM, "'t' has 5 dimensions"),
    "no axes": (header(1) + tensor(shape=()) + ROOM, "'t' has 0 dimensions"),
    "an empty axis": (header(1) + tensor(shape=(0, 4)) + ROOM, r"'t' has shape \[4, 0\]"),
    "a product that overflows": (header(1) + tensor(shape=(2**32, 2**32)) + ROOM, "'t' ends at byte"),
    "no such tensor type": (header(1) + tensor(kind=99) + ROOM, "'t' has type 99"),
    "a tensor type removed": (header(1) + tensor(kind=4) + ROOM, "'t' has type 4"),
    "half a block": (header(1) + tensor(shape=(33, 4), kind=8) + ROOM, r"'t' has shape \[4, 33\], which type Q8_0"),
    "an offset beyond": (header(1) + tensor(offset=2**62) + ROOM, "'t' ends at byte"),
    "an offset not aligned": (header(1) + tensor(offset=4) + ROOM, "'t' is at 4, which 32 does not divide"),
    "one tensor twice": (header(2) + tensor() + tensor(offset=128) + ROOM, "'t' occurs twice"),
    "an overlap": (header(2) + tensor(b"a") + tensor(b"b", offset=96) + ROOM, "'a' and 'b' overlap"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_header_is_an_error_that_says_what_is_wrong(case, tmp_path, capsys):
    content, message = DAMAGED[case]
    file = tmp_path / "bad.gguf"
    file.write_bytes(content)

    def load():
        with pytest.raises(UserError, match=rf"^{file}: .*{message}") as caught:
            read_header(file)
        raise caught.value

    good, peak = allocated(load, file)
    assert not good
    assert peak < 2 * len(content) + 1_000_000  # of the test, most of it
    assert main(["inspect", str(file)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(file) in line


def test_truncated_file_is_an_error(tmp_path, mesh):
    file = write_tiny(tmp_path / "tiny.gguf", "llama", Type.Q8_0)
    everything(file, mesh)
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    last = max(t.offset + t.bytes for t in read_header(file).tensors.values())
    for kept in [0, 3, 7, 23, last - 1, *rng.integers(0, last, 60).tolist()]:
        file.write_bytes(whole[:kept])
        assert not survives(lambda: everything(file, mesh), file), kept


def test_flipped_header_byte_is_harmless_or_an_error(tmp_path, mesh):
    file = write_tiny(tmp_path / "tiny.gguf", "llama", Type.Q8_0)
    match_tensors(resolve(file))
    whole, rng = file.read_bytes(), np.random.default_rng(0)
    start = min(t.offset for t in read_header(file).tensors.values())
    refused, places = 0, [*range(24), *rng.choice(start, 220, replace=False).tolist()]
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(flipped)

        def load():
            directory = resolve(file)
            load_tokenizer(directory)
            match_tensors(directory)

        good, peak = allocated(load, file)
        refused += not good
        assert peak < 2 * len(whole) + 4_000_000, (place, peak)  # the libraries' own, and a configuration
    assert refused > len(places) / 4  # the rest: spellings of tokens, numbers that may be any


def test_memory_for_a_header_is_bounded_by_the_file(tmp_path):
    file = tmp_path / "big.gguf"
    tokens = b"".join(string(b"a") for _ in range(400_000))
    merges = b"".join(string(b"") for _ in range(400_000))
    numbers = np.zeros(500_000, "<u8").tobytes()
    file.write_bytes(
        header(keys=3)
        + key(b"a", 9, struct.pack("<IQ", 8, 400_000) + tokens)
        + key(b"b", 9, struct.pack("<IQ", 8, 400_000) + merges)
        + key(b"c", 9, struct.pack("<IQ", 10, 500_000) + numbers)
    )
    size = file.stat().st_size
    good, peak = allocated(lambda: read_header(file), file)
    assert good
    assert size < peak < 2 * size


BROKEN_TOKENIZERS = {
    "no tokens": ({"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens is missing"),
    "a first token too long": (
        {"tokenizer.ggml.tokens": ("add_array", ["a" * 5000, *TOKENS[1:], *map(str, range(64 - len(TOKENS)))])},
        r"tokens\[0\] has 5000 characters",
    ),
    "a special token twice": (
        {"tokenizer.ggml.tokens": ("add_array", [*TOKENS[:-1], "</s>", *map(str, range(64 - len(TOKENS)))])},
        r"tokens\[2\] and \[39\] are both '</s>'",
    ),
    "a type that is none": (
        {"tokenizer.ggml.token_type": ("add_array", [*62 * [1], 77, 1])},
        r"token_type\[62\] is 77, which GGUF does not define",
    ),
    "no scores": ({"tokenizer.ggml.scores": None}, "tokenizer.ggml.scores is missing"),
    "an unknown model": ({"tokenizer.ggml.model": ("add_string", "bert")}, "tokenizer.ggml.model is 'bert'"),
    "too few types": ({"tokenizer.ggml.token_type": ("add_array", [1, 2])}, "token_type is no list of 64 numbers"),
    "a score that is not finite": (
        {"tokenizer.ggml.scores": ("add_array", [float("nan")] * 64)},
        "scores holds NaN or infinite values",
    ),
    "an id beyond": ({"tokenizer.ggml.eos_token_id": ("add_uint32", 64)}, "eos_token_id is 64, which is no id of 64"),
    "an unused id": ({"tokenizer.ggml.bos_token_id": ("add_uint32", 60)}, "bos_token_id is 60, a token that is not"),
    "a flag that is none": ({"tokenizer.ggml.add_bos_token": ("add_string", "no")}, "neither true nor false"),
    "a template that is none": ({"tokenizer.chat_template": ("add_uint32", 1)}, "chat_template is no string: 1"),
}


@pytest.mark.parametrize("case", BROKEN_TOKENIZERS)
def test_broken_tokenizer_is_an_error_that_names_the_key(case, tmp_path):
    from tests.checkpoints.gguf import write

    edits, message = BROKEN_TOKENIZERS[case]

    def add_tokenizer(writer: gguf.GGUFWriter, size: int):
        write.add_tokenizer(writer, size)
        for name, value in edits.items():
            writer.kv_data[0].pop(name, None)
            if value is not None:
                getattr(writer, value[0])(name, value[1])

    file = write_tiny(tmp_path / "tiny.gguf", add_tokenizer=add_tokenizer)
    with pytest.raises(UserError, match=rf"^{file}: .*{message}"):
        resolve(file)


# model, edits of the keys, message
BROKEN_KEYS = {
    "a kind of file that is a list": ("llama", {"general.type": ("add_array", [1, 2])}, "general.type is array"),
    "an architecture of any length": (
        "llama",
        {"general.architecture": ("add_string", 10**6 * "x")},
        "is not supported",
    ),
    "layers without end": ("gemma3", {"gemma3.block_count": ("add_uint32", 10**9)}, "block_count is 1000000000, but"),
    "theta 0 with factors": (
        "llama/3",
        {"llama.rope.freq_base": ("add_float32", 0.0)},
        "freq_base is 0.0; with factors",
    ),
    "theta of any size": ("llama/3", {"llama.rope.freq_base": ("add_float32", 3e38)}, "factors that no 'llama3' rope"),
}


@pytest.mark.parametrize("case", BROKEN_KEYS)
def test_broken_key_is_an_error_that_names_it(case, tmp_path):
    from tests.checkpoints.gguf import write

    name, edits, message = BROKEN_KEYS[case]

    def add_tokenizer(writer: gguf.GGUFWriter, size: int):
        write.add_tokenizer(writer, size)
        for key, (add, value) in edits.items():
            writer.kv_data[0].pop(key, None)
            getattr(writer, add)(key, value)

    file = write_tiny(tmp_path / "tiny.gguf", name, add_tokenizer=add_tokenizer)
    with pytest.raises(UserError, match=rf"^{file}: .*{message}") as caught:
        resolve(file)
    assert len(str(caught.value)) < 1000
