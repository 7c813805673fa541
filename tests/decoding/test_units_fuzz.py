"""Random models write anything: parts of characters, special tokens, white space. By units, as the oracle does."""

import pytest

from tests.decoding.units_team import assert_as_the_oracle, make_team
from tests.text.vocabularies import KINDS, save
from tests.tiny import write_model

PROMPTS = ["a", "the cat b", "ab. é", "b\n"]


@pytest.mark.parametrize(
    ("base", "expert"), [("byte-level", "llama"), ("gemma", "byte-level"), ("characters", "llama")]
)
def test_random_answers_are_those_of_the_oracle(base, expert, tmp_path, mesh):
    places = [tmp_path / "base", tmp_path / "expert"]
    for seed, (kind, place) in enumerate(zip((base, expert), places)):
        write_model(place, seed=seed, vocab_size=KINDS[kind]().get_vocab_size())
        save(kind, place)
    team = make_team(mesh, places[0], [places[1]], spread=0.4)
    for seed in range(2):
        settings = {"max_new_tokens": 30, "threshold": 0.5, "temperature": 1.0, "seed": seed}
        answers, oracle = assert_as_the_oracle(team, PROMPTS, **settings)
        assert sum(answer.expert_calls for answer in answers) >= len(oracle.computed) > 0  # some write nothing
