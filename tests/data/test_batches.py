"""Padding, packing, and the order of examples."""

import numpy as np
import pytest

from colm_jax.data.batches import collate, padded_length, shuffled
from colm_jax.data.records import Example


def example(*ids, targets=None):
    targets = [False, *[True] * (len(ids) - 1)] if targets is None else targets
    return Example(np.array(ids, np.int32), np.array(targets, bool))


EXAMPLES = [example(1, 5, 6), example(1, 7, targets=[False, False]), example(1, 8, 9, 10, 11), example(1)]


def test_collate_pads_right_and_shifts_the_mask_to_the_predicting_position():
    batch = collate(EXAMPLES, [[2], [0], [1]], batch_size=4, length=6)
    np.testing.assert_array_equal(
        batch.tokens, [[1, 8, 9, 10, 11, 0], [1, 5, 6, 0, 0, 0], [1, 7, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]
    )
    np.testing.assert_array_equal(
        batch.mask.astype(int), [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    )
    np.testing.assert_array_equal(batch.segments, batch.tokens > 0)


def test_collate_accepts_a_full_row_and_a_single_token():
    batch = collate(EXAMPLES, [[2], [3]], batch_size=2, length=5)
    np.testing.assert_array_equal(batch.tokens, [[1, 8, 9, 10, 11], [1, 0, 0, 0, 0]])
    np.testing.assert_array_equal(batch.mask.sum(-1), [4, 0])


def test_collate_concatenates_the_texts_of_a_row():
    batch = collate(EXAMPLES, [[0, 3, 1], [2]], batch_size=2, length=8)
    np.testing.assert_array_equal(batch.tokens, [[1, 5, 6, 1, 1, 7, 0, 0], [1, 8, 9, 10, 11, 0, 0, 0]])
    np.testing.assert_array_equal(batch.segments, [[1, 1, 1, 2, 3, 3, 0, 0], [1, 1, 1, 1, 1, 0, 0, 0]])
    np.testing.assert_array_equal(batch.mask.astype(int), [[1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0]])


@pytest.mark.parametrize(("lengths", "expected"), [([3], 32), ([32, 5], 32), ([33], 64)])
def test_padded_length_is_the_longest_rounded_up(lengths, expected):
    assert padded_length(lengths) == expected


def epochs(dataset, count):
    return np.array([number for i in range(len(dataset)) for row in dataset[i] for number in row]).reshape(-1, count)


def test_each_epoch_is_a_different_permutation():
    first, second, third = epochs(shuffled(23, 4, epochs=3, seed=0), 23)
    for epoch in (first, second, third):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(23))
    assert not np.array_equal(first, second)
    assert not np.array_equal(second, third)
    assert not np.array_equal(first, np.arange(23))


@pytest.mark.parametrize(("count", "sizes"), [(23, [8] * 5 + [6]), (24, [8] * 6), (3, [6])])
def test_short_last_batch_is_kept(count, sizes):
    dataset = shuffled(count, 8, epochs=2, seed=0)
    assert [len(dataset[i]) for i in range(len(dataset))] == sizes


def test_element_depends_only_on_seed_and_step():
    forwards = shuffled(23, 4, epochs=2, seed=5)
    expected = [np.array(forwards[i]) for i in range(len(forwards))]
    for step in (7, 2, 11, 0, 2):
        np.testing.assert_array_equal(shuffled(23, 4, epochs=2, seed=5)[step], expected[step])
        np.testing.assert_array_equal(forwards[step], expected[step])
    other = shuffled(23, 4, epochs=2, seed=6)
    assert any(not np.array_equal(other[i], rows) for i, rows in enumerate(expected))


def test_more_epochs_do_not_change_earlier_ones():
    short, long = (epochs(shuffled(24, 4, epochs=n, seed=1), 24) for n in (1, 3))
    np.testing.assert_array_equal(short[0], long[0])
