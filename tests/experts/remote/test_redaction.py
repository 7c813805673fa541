"""Pseudonyms: what is replaced is restored, and nothing of a match is sent."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colm_jax.errors import UserError
from colm_jax.experts.remote.redaction import Redaction

RULES = Redaction(
    {
        "PERSON": (re.compile("Ada(?: Lovelace)?"), re.compile("Bob")),
        "ID": (re.compile(r"\[[a-z0-9]+\]"), re.compile(r"\d{3,}")),
        "ID_1": (re.compile("zz+"),),
    }
)
PARTS = st.sampled_from(
    ["Ada", "Ada Lovelace", "Bob", "[x1]", "123", "zz", "PERSON_1", "ID_1", "ID_1_2", "ID", *"_1 .éx"]
)
TEXTS = st.lists(PARTS, max_size=12).map("".join)


@given(st.lists(TEXTS, min_size=1, max_size=4))
@settings(max_examples=500, deadline=None)
def test_redact_then_restore_is_the_identity(texts):
    table = RULES.pseudonyms()
    sent = [table.replace(text) for text in texts]
    for text, replaced in zip(texts, sent, strict=True):
        restored = table.restore(replaced.text)
        assert (restored.text, restored.unknown, restored.known) == (text, (), len(text))
        assert [restored.text[a:b] for a, b in restored.kept] == [text[a:b] for a, b, _, _ in replaced.places]
        assert table.replace(text) == replaced  # the same ones each time


@given(st.text(alphabet="AdaBob 12[]z_PERSOND.é\n", max_size=40))
@settings(max_examples=500, deadline=None)
def test_no_match_is_sent(text):
    table = RULES.pseudonyms()
    sent = table.replace(text)
    assert table.restore(sent.text).text == text
    left = sent.text
    for _, _, a, b in reversed(sent.places):
        left = left[:a] + "\0" + left[b:]
    assert not any(pattern.search(left) for patterns in RULES.patterns.values() for pattern in patterns)


@given(TEXTS, st.data())
@settings(max_examples=300, deadline=None)
def test_places_follow_the_text(text, data):
    sent = RULES.pseudonyms().replace(text)
    places = [sent.place(i) for i in range(len(text) + 1)]
    assert places[0] == 0 and places[-1] == len(sent.text) and places == sorted(places)
    outside = [i for i in range(len(text)) if not any(a <= i < b for a, b, _, _ in sent.places)]
    assert [sent.text[int(places[i])] for i in outside] == [text[i] for i in outside]
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    parts = [(i, i + 1, text[i]) for i in outside] + [(a, b, sent.text[c:d]) for a, b, c, d in sent.places]
    kept = [part for a, b, part in sorted(parts) if a < start or b > end or start == end]
    assert sent.without(start, end) == "".join(kept)  # whole pseudonyms


def test_values_have_one_pseudonym_throughout():
    table = RULES.pseudonyms()
    assert table.replace("Ada met Bob; Ada left.").text == "PERSON_1 met PERSON_2; PERSON_1 left."
    assert table.replace("Bob's, not Adah's").text == "PERSON_2's, not PERSON_3's"  # whole words
    assert table.restore("PERSON_2 and PERSON_3.").text == "Bob and Adah."
    assert RULES.pseudonyms().replace("Bob").text == "PERSON_1"


def test_unknown_pseudonyms_are_told():
    table = RULES.pseudonyms()
    table.replace("Ada")
    restored = table.restore("PERSON_1 and PERSON_2 and XPERSON_1")
    assert restored.text == "Ada and PERSON_2 and XPERSON_1"
    assert restored.unknown == ((8, "PERSON_2"),) and restored.kept == ((0, 3),)


@pytest.mark.parametrize(
    "tail, known",
    [("a PER", 2), ("a PERSON_", 2), ("a PERSON_1", 2), ("a ID", 2), ("a PERSON_1.", 6), ("a dog", 5), ("a XPER", 6)],
)
def test_what_may_become_a_pseudonym_is_not_known_yet(tail, known):
    table = RULES.pseudonyms()
    table.replace("Ada")
    assert table.restore(tail, ended=False).known == known
    assert table.restore(tail).known == len(table.restore(tail).text)


def test_messages_are_replaced_but_roles_are_not():
    table = Redaction({"ROLE": (re.compile("user"),)}).pseudonyms()
    message = {"role": "user", "content": "a user", "parts": [{"type": "user", "text": "user"}, 3, None]}
    expected = {"role": "user", "content": "a ROLE_1", "parts": [{"type": "user", "text": "ROLE_1"}, 3, None]}
    assert table.replace_all([message]) == [expected]


@pytest.mark.parametrize(
    "rules, error",
    [
        ("patterns = 3", "has no [patterns]"),
        ("", "has no [patterns]"),
        ("[patterns]\nPERSON = 3", "patterns.PERSON: must be a regular expression, or a list of them, got 3"),
        ("[patterns]\nPERSON = []", "patterns.PERSON: must be"),
        ("[patterns]\nPERSON = '('", "patterns.PERSON: '(' is no regular expression"),
        ("[patterns]\nPERSON = 'a*'", "patterns.PERSON: 'a*' matches the empty text"),
        ("[patterns]\nperson = 'a'", "patterns.person: a name is of capital letters"),
        ("[pattern]\nA = 'a'", "unknown key pattern"),
        ("[patterns", "not valid TOML"),
    ],
)
def test_wrong_rules_are_named_by_file_and_key(rules, error, tmp_path):
    path = tmp_path / "rules.toml"
    path.write_text(rules)
    with pytest.raises(UserError, match=re.escape(f"{path}: ")) as raised:
        Redaction.read(str(path))
    assert error in str(raised.value)


def test_rules_are_read(tmp_path):
    path = tmp_path / "rules.toml"
    path.write_text("[patterns]\nPERSON = ['(?i)ada', 'Bob']\nEMAIL = '[\\w.]+@[\\w.]+'\n")
    table = Redaction.read(str(path)).pseudonyms()
    assert table.replace("ada@b.org, ADA, Bob").text in (
        "PERSON_1, PERSON_2, PERSON_3",
        "EMAIL_1, PERSON_1, PERSON_2",
    )
    with pytest.raises(UserError, match="file is missing"):
        Redaction.read(str(tmp_path / "none.toml"))
