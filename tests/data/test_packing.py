"""Packed rows hold every text once, in few shapes, with little padding."""

import numpy as np
import pytest

from colm_jax.checkpoints.directory import resolve
from colm_jax.checkpoints.team import load_tokenizers
from colm_jax.data.convert import convert
from colm_jax.data.packing import choose_counts, choose_packing, longest_row, pack, rounded
from colm_jax.data.records import encode_text
from colm_jax.evaluation.files import read_records
from tests.conftest import NO_SHARED, SHARED

CPU = {"group": 1, "at_once": 512, "attention": 1024}
ACCELERATORS = {"group": 1, "at_once": 4096, "attention": 2048}


def batches(lengths, shard=128, context=8192, **machine):
    """The batches of all shards, after a check that they hold every text of the shard once, in rows that hold it."""
    packing = choose_packing(lengths, shard, context=context, **machine)
    found = []
    for first in range(0, len(lengths), shard):
        numbers = range(first, min(first + shard, len(lengths)))
        of_shard = packing.batches(lengths, numbers)
        assert sorted(number for _, rows in of_shard for row in rows for number in row) == list(numbers)
        for shape, rows in of_shard:
            assert 0 < len(rows) <= shape.rows
            assert shape.rows % packing.group == 0
            assert all(sum(lengths[number] for number in row) <= shape.positions + 1 for row in rows)
        found += of_shard
    return found


def ratio(found, lengths):
    return sum(shape.size for shape, _ in found) / np.sum(lengths)


def of_spread(median, sigma, count=1500, longest=4000):
    drawn = np.random.default_rng(0).lognormal(np.log(median), sigma, count)
    return np.clip(drawn.astype(int), 2, longest)


@pytest.mark.parametrize("machine", [CPU, ACCELERATORS], ids=["cpu", "accelerators"])
@pytest.mark.parametrize(
    "lengths",
    [of_spread(190, 0.35), of_spread(260, 0.75), of_spread(390, 0.3), of_spread(60, 1.2), of_spread(900, 0.8)],
    ids=["like GSM8K", "like MATH", "like PubMedQA", "wide", "long"],
)
def test_at_most_a_tenth_is_padding_in_at_most_six_shapes(lengths, machine):
    found = batches(lengths, **machine)
    assert ratio(found, lengths) <= 1.10
    assert len({shape for shape, _ in found}) <= 6


@pytest.mark.skipif(not SHARED.exists(), reason=NO_SHARED)
@pytest.mark.parametrize("machine", [CPU, ACCELERATORS], ids=["cpu", "accelerators"])
@pytest.mark.parametrize(
    ("form", "file"), [("gsm8k", "test.jsonl"), ("math", "MATH500.jsonl"), ("pubmedqa", "ori_pqal.json")]
)
def test_at_most_a_tenth_of_real_data_is_padding(form, file, machine):
    data = SHARED / "data" / form / file
    if not data.exists():
        pytest.skip(f"no {data}")
    (tokenizer,), _ = load_tokenizers([resolve(str(SHARED / "models/stories260k"))])
    texts = convert(read_records(data), form)
    lengths = np.array([len(encode_text(text, tokenizer, form).ids) for text in texts])
    found = batches(lengths, **machine)
    assert ratio(found, lengths) <= 1.10
    assert len({shape for shape, _ in found}) <= 6


@pytest.mark.parametrize("length", [2, 3, 100, 257, 300, 700])
def test_texts_of_one_length_make_no_more_rows_than_texts(length):
    found = batches(np.full(256, length), **CPU)
    assert len({shape for shape, _ in found}) == 1
    assert ratio(found, np.full(256, length)) <= 1.3


@pytest.mark.parametrize("group", [4, 8, 32])
def test_batches_are_shared_evenly_by_groups_of_devices(group):
    lengths = of_spread(190, 0.35)
    found = batches(lengths, group=group, at_once=4096, attention=2048)
    assert len({shape for shape, _ in found}) <= 6
    assert ratio(found, lengths) <= 1.3


@pytest.mark.parametrize("lengths", [[1], [2], [1, 2, 1], [20], [900]])
def test_a_data_set_of_few_tokens_has_one_shape(lengths):
    (only,) = batches(lengths, **CPU)
    assert only[0].size <= max(32, 1.25 * sum(lengths))


def test_few_texts_compile_one_program():
    lengths = np.random.default_rng(0).integers(2, 40, 40)
    assert len({shape for shape, _ in batches(lengths, shard=8, **CPU)}) == 1


def test_rows_are_no_longer_than_the_context_unless_a_text_is():
    short = batches(np.full(50, 90), context=100, **CPU)
    assert {shape.positions for shape, _ in short} <= {96, 100}
    assert {shape.positions for shape, _ in batches([90, 131], context=100, **CPU)} == {130}
    assert longest_row([90, 131], 100) == 130
    assert longest_row([90, 131], 1000) == 160


def test_pack_fills_each_row_with_the_longest_text_that_fits():
    lengths = [5, 4, 3, 2, 8]
    assert pack(lengths, range(5), [7]) == [(7, [4]), (7, [0, 2]), (7, [1, 3])]
    assert pack(lengths, range(5), [4, 7]) == [(7, [4]), (4, [0]), (4, [1]), (4, [2, 3])]
    assert pack(lengths, [4], [7], group=2) == [(7, [4]), (7, [])]
    with pytest.raises(ValueError, match="a text of 8 tokens does not fit into rows of 7"):
        pack(lengths, range(5), [6])


def test_lengths_of_rows_are_few():
    sizes = {rounded(n) for n in range(1, 4097)}
    assert all(rounded(n) >= n and rounded(rounded(n)) == rounded(n) for n in range(1, 4097))
    assert all(size % 32 == 0 for size in sizes)
    assert len([size for size in sizes if size > 128]) == 4 * 5


@pytest.mark.parametrize(
    ("needed", "positions", "chosen"),
    [
        ([3, 3, 3], 100, (3,)),
        ([2, 3, 3, 4], 8, (4,)),  # too little saved
        ([40] * 50 + [43] * 50 + [46], 1000, (40, 43, 46)),
        ([40] * 50 + [41] * 50 + [43] * 50 + [46], 1000, (41, 43, 46)),  # three at most
    ],
)
def test_another_number_of_rows_where_it_saves_more_than_its_program_costs(needed, positions, chosen):
    assert choose_counts(needed, positions) == chosen
