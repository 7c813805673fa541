"""Tokenised texts on disk equal those read in memory; truncated and skipped texts are counted."""

import hashlib
import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from colm_jax.data.batches import collate
from colm_jax.data.records import INDEX, Example, Examples, encode_examples, read_jsonl
from colm_jax.data.tokens import StoredTexts, counts, open_tokens, tokenise
from colm_jax.errors import UserError
from colm_jax.text.tokenizer import load_tokenizer
from tests.tiny import CHAT_TEMPLATE, write_tokenizer

RECORDS = [
    {"text": "abc def"},
    {"prompt": "ab", "completion": "cd"},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    {"input_ids": [1, 4, 5, 6], "labels": [-100, 4, -100, 6]},
    {"input_ids": [0, 0, 0]},  # id 0 must keep its sign
]
EMPTY = [
    {"input_ids": [7]},
    {"text": ""},  # only BOS
    {"input_ids": [4, 5], "labels": [-100, -100]},
    {"input_ids": [4, 5], "labels": [4, -100]},  # a first token is never predicted
    {"messages": [{"role": "user", "content": "a"}]},
    {"prompt": "abcdefghijklmnop", "completion": "q"},
]


@pytest.fixture
def tokenizer(tmp_path):
    return load_tokenizer(write_tokenizer(tmp_path / "tokenizer", chat_template=CHAT_TEMPLATE))


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def same(one: Example, two: Example) -> bool:
    assert (one.ids.dtype, one.targets.dtype) == (np.dtype("int32"), np.dtype(bool))
    return np.array_equal(one.ids, two.ids) and np.array_equal(one.targets, two.targets)


def test_texts_on_disk_equal_texts_in_memory(tokenizer, tmp_path):
    source = write(tmp_path / "d.jsonl", RECORDS)
    tokenise(source, tokenizer, 8, tmp_path / "tokens")
    stored, held = open_tokens(tmp_path / "tokens"), encode_examples(read_jsonl(source), tokenizer, 8, "d")
    assert len(stored.items) == len(held.items) == len(RECORDS)
    assert all(same(one, two) for one, two in zip(stored.items, held.items))
    assert (stored.tokens, stored.cut) == (held.tokens, held.cut)
    np.testing.assert_array_equal(stored.index, held.index)
    np.testing.assert_array_equal(stored.lengths, [len(item.ids) for item in held.items])
    np.testing.assert_array_equal(stored.counted(), np.concatenate([item.targets[1:] for item in held.items]))
    assert stored.digest([1, 2]) == held.digest(range(1, 3)) != held.digest([2, 1])
    one, two = (collate(examples.items, [[3, 0], [1]], 2, 16) for examples in (stored, held))
    np.testing.assert_array_equal(one.tokens, two.tokens)
    np.testing.assert_array_equal(one.mask, two.mask)


def test_texts_support_indices_slices_and_pickle(tokenizer, tmp_path):
    tokenise(write(tmp_path / "d.jsonl", RECORDS), tokenizer, 64, tmp_path / "tokens")
    texts = open_tokens(tmp_path / "tokens").items
    assert same(texts[-1], texts[4])
    assert [len(text.ids) for text in texts[1:4]] == [len(texts[i].ids) for i in (1, 2, 3)]
    with pytest.raises(IndexError):
        texts[5]
    assert all(same(one, two) for one, two in zip(pickle.loads(pickle.dumps(texts)), texts))


def test_digest_depends_on_every_id_and_mask():
    text = Example(np.array([1, 5, 6], np.int32), np.array([False, True, True]))
    others = [
        Example(np.array([1, 5, 7], np.int32), text.targets),
        Example(text.ids, np.array([False, False, True])),
        Example(text.ids[:2], text.targets[:2]),
    ]
    digests = {Examples((example,), 0).digest([0]) for example in (text, *others)}
    assert len(digests) == 4
    assert Examples((Example(text.ids.copy(), text.targets.copy()),), 3).digest([0]) in digests


def test_texts_without_counted_tokens_are_skipped_and_counted(tokenizer, tmp_path):
    source = write(tmp_path / "d.jsonl", [EMPTY[0], RECORDS[0], *EMPTY[1:], RECORDS[3]])
    tokenise(source, tokenizer, 6, tmp_path / "tokens")
    examples = open_tokens(tmp_path / "tokens")
    assert len(examples.items) == 2
    assert examples.index["line"].tolist() == [2, 8]
    assert examples.index["targets"].tolist() == [5, 2]
    summary = json.loads((tmp_path / "tokens/summary.json").read_text())
    assert summary == {
        "texts": 2,
        "tokens": 10,
        "tokens_counted": 7,
        "length": 6,
        "texts_cut": 1,
        "texts_left_out": {"one_token": 2, "nothing_counts": 3, "cut_off": 1},
    }
    assert counts(tmp_path / "tokens") == (
        "2 texts of 10 tokens, of which 7 count in the loss; 1 texts cut at 6 tokens; left out: 2 of a single token, "
        "3 in which no token counts in the loss, 1 in which none does before the cut"
    )


def test_documents_of_a_text_file_are_numbered(tokenizer, tmp_path):
    (tmp_path / "d.txt").write_text("ab\nc<|endoftext|>\n<|endoftext|>d e<|endoftext|>f\n", newline="")
    tokenise(tmp_path / "d.txt", tokenizer, 64, tmp_path / "tokens")
    examples = open_tokens(tmp_path / "tokens")
    assert examples.index["line"].tolist() == [1, 3, 4]
    assert [tokenizer.decode(text.ids.tolist()) for text in examples.items] == ["ab\nc".replace("\n", ""), "d e", "f"]


def test_same_file_gives_the_same_bytes(tokenizer, tmp_path):
    rng = np.random.default_rng(0)
    records = [{"input_ids": rng.integers(0, 32, rng.integers(2, 300)).tolist()} for _ in range(500)]
    source = write(tmp_path / "d.jsonl", records)
    for name in ("a", "b"):
        tokenise(source, tokenizer, 256, tmp_path / name)
    (tmp_path / "b/texts.arrayrecord.tmp").write_text("of a tokenising that was killed")
    tokenise(source, tokenizer, 256, tmp_path / "b")
    hashes = [
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / name).iterdir()}
        for name in ("a", "b")
    ]
    assert hashes[0] == hashes[1]
    assert sorted(hashes[0]) == ["index.npy", "summary.json", "texts.arrayrecord"]


def test_threads_share_a_reader(tokenizer, tmp_path):
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 32, rng.integers(2, 300)).tolist() for _ in range(300)]
    tokenise(write(tmp_path / "d.jsonl", [{"input_ids": row} for row in rows]), tokenizer, 512, tmp_path / "tokens")
    texts = StoredTexts(tmp_path / "tokens/texts.arrayrecord")

    def right(seed: int) -> bool:
        order = np.random.default_rng(seed).permutation(len(rows))
        return all(texts[int(number)].ids.tolist() == rows[number] for number in order)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(right, range(16)))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (['{"text": "a"}', '{"text": "a"'], r"d.jsonl:2: not valid JSON"),
        (['{"text": "a"}', "", '{"text": 3}'], r"d.jsonl:3: 'text' must be a string"),
        (
            ['{"text": "a"}', '{"input_ids": [4, 31]}'],
            r"d.jsonl:2: token 1 is 31 .* not in the team's shared vocabulary",
        ),
        ([], "d.jsonl: the file has no data"),
        (['{"text": ""}', '{"prompt": "abc", "completion": ""}'], r"no token counts .*context 3, 1 examples cut"),
    ],
)
def test_invalid_file_leaves_no_output(lines, said, tokenizer, tmp_path):
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match=said):
        tokenise(tmp_path / "d.jsonl", tokenizer, 3, tmp_path / "tokens", allowed=np.arange(32) < 31)
    assert not (tmp_path / "tokens").exists()


def test_invalid_utf8_is_an_error_with_the_line(tokenizer, tmp_path):
    (tmp_path / "d.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(UserError, match=r"d.jsonl:2: not UTF-8 text"):
        tokenise(tmp_path / "d.jsonl", tokenizer, 8, tmp_path / "tokens")


def test_progress_ends_at_the_size_of_the_file(tokenizer, tmp_path):
    source = write(tmp_path / "d.jsonl", [{"text": "abcdefgh" * 100}] * 200)
    told = []
    tokenise(source, tokenizer, 64, tmp_path / "tokens", progress=lambda done, total: told.append((done, total)))
    size = source.stat().st_size
    assert told[-1] == (size, size)
    assert 2 <= len(told) <= 4
    assert sorted(told) == told


def test_mismatched_files_are_an_error(tokenizer, tmp_path):
    tokenise(write(tmp_path / "d.jsonl", RECORDS), tokenizer, 64, tmp_path / "tokens")
    index = np.load(tmp_path / "tokens/index.npy")
    assert index.dtype == INDEX
    np.save(tmp_path / "tokens/index.npy", index[:-1])
    with pytest.raises(UserError, match="does not match the 5 texts"):
        open_tokens(tmp_path / "tokens")
    (tmp_path / "tokens/texts.arrayrecord").write_bytes(b"")
    with pytest.raises(UserError, match="cannot read"):
        open_tokens(tmp_path / "tokens")
