"""A guest's sequences: what it has read, what it reads again, and how its units end."""

import numpy as np
import pytest

from colm_jax.data.token_units import TokenUnits
from colm_jax.data.units import Unit
from colm_jax.experts.guest import LONGEST, GuestExpert, _Sequence
from colm_jax.experts.protocol import Call
from colm_jax.text.spans import Opening
from colm_jax.text.tokenizer import load_tokenizer
from tests.tiny import run, tiny_decoder, write_tokenizer

WORDS = 32


class Joining(TokenUnits):
    """Units that the guest reads letter by letter, but its tokenizer joins "b" with "a" before it."""

    def __init__(self, *known):
        super().__init__(*known)
        self.asked = []

    def read(self, model, unit, before):
        self.asked.append(unit.text)
        joined = before.endswith("a") and unit.text.startswith("b")
        return None if joined else [ord(letter) - 96 for letter in unit.text]


class Sparse(TokenUnits):
    """Nothing but one token opens a unit behind another token."""

    opener: int

    def opening(self, model):
        table = np.zeros((4, 4), bool)
        table[0, 2:] = table[2, 3] = True
        return Opening(np.full(WORDS, 2, np.int32), np.where(np.arange(WORDS) == self.opener, 3, 2), table)


def greedy(decoder, tokens):
    """The token that a model finds likeliest next, without a cache."""
    return int(np.argmax(run(decoder, np.array([tokens], np.int32))[1][0, -1]))


def call(answer, sequence=0, prompt=(1, 2, 3)):
    return Call(sequence, list(prompt), tuple(answer), seed=0)


def write(guest, *calls):
    guest.start(calls)
    return [written.unit.tokens for written in guest.finished(wait=True)]


@pytest.fixture(scope="module")
def decoder():
    return tiny_decoder(context=64)


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """What units are made of."""
    tokenizer = load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))
    return tokenizer, [64, 64], np.ones(WORDS, bool), [WORDS, WORDS]


@pytest.fixture
def guest(decoder, known):
    return GuestExpert("guest", decoder, 1, TokenUnits(*known))


def test_a_unit_of_a_shared_tokenizer_is_the_likeliest_token(guest, decoder):
    answer = []
    for _ in range(4):
        (tokens,) = write(guest, call(answer))
        assert tokens == (greedy(decoder, [1, 2, 3, *(unit.tokens[0] for unit in answer)]),)
        answer.append(Unit("", tokens))
        answer.append(Unit("", (5,)))  # by the base
    assert guest.passes == 4


def test_sequences_are_written_together_in_slots_of_their_own(guest, decoder):
    longer = tuple(range(1, 30)) * 2
    found = write(guest, call([], 7), call([], 9, longer))
    assert found == [(greedy(decoder, [1, 2, 3]),), (greedy(decoder, longer),)]
    assert guest.passes == 2  # the longer prompt's beginning, then both
    guest.release(7)
    assert write(guest, call([], 8, (4, 5))) == [(greedy(decoder, [4, 5]),)]  # in its slot
    guest.release(8)
    guest.release(9)
    assert guest._cache is None


def test_what_it_wrote_stays_in_the_cache_as_far_as_it_is_what_is_read(guest, decoder):
    (first,) = write(guest, call([]))
    sequence = guest._sequences[0]
    assert sequence.held == [1, 2, 3]
    other = (first[0] % 30 + 1,)
    (tokens,) = write(guest, call([Unit("", other), Unit("", (6,))]))
    assert tokens == (greedy(decoder, [1, 2, 3, *other, 6]),)
    assert sequence.held == [1, 2, 3, *other, 6]


def test_a_boundary_that_the_tokenizer_joins_is_read_again(known):
    units = Joining(*known)
    sequence = _Sequence(0, [9])
    for text in ("c", "a", "b", "d"):
        sequence.read(Unit(text, (0,)), units, 1)
    assert units.asked == ["c", "a", "b", "ab", "d"]
    assert [unit.text for unit in sequence.units] == ["c", "ab", "d"]
    assert (sequence.known, sequence.starts) == (4, [1, 2, 4])
    assert sequence.tokens == [9, 3, 1, 2, 4]


def test_a_unit_ends_where_another_one_would_begin_or_at_its_largest_length(decoder, known):
    text = [1, 2, 3]
    while len(text) < 3 + LONGEST:
        text.append(greedy(decoder, text))
    written, units = text[3:], Sparse(*known)
    for opener in (next(token for token in range(WORDS) if token not in written), written[2]):
        units.opener = opener
        guest = GuestExpert("guest", decoder, 1, units)
        guest.start([call([])])
        (found,) = guest.finished(wait=True)
        end = next((i for i in range(1, LONGEST) if written[i] == opener), LONGEST)
        assert found.unit.tokens == tuple(written[:end])
        assert found.computed == min(end + 1, LONGEST)  # the one that shows the end counts
