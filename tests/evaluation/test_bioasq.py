import json

import pytest

from colm_jax.errors import UserError
from colm_jax.evaluation.bioasq import candidates, grade, question_of
from colm_jax.evaluation.files import evaluate_files, read_predictions
from colm_jax.evaluation.rouge import rouge_2, rouge_su4

QUESTIONS = [
    {"id": "a", "type": "yesno", "body": "?", "exact_answer": "yes", "ideal_answer": ["Yes."]},
    {"id": "b", "type": "yesno", "body": "?", "exact_answer": "no", "ideal_answer": ["No."]},
    {"id": "c", "type": "factoid", "body": "?", "exact_answer": [["transthyretin", "TTR"]]},
    {"id": "d", "type": "factoid", "body": "?", "exact_answer": ["chromosome 7"]},
    {"id": "e", "type": "list", "body": "?", "exact_answer": [["aspirin", "ASA"], ["ibuprofen"], ["naproxen"]]},
    {"id": "f", "type": "summary", "body": "?", "ideal_answer": ["the police killed the gunman", "unrelated words"]},
]
ANSWERS = {
    "a": "Yes, it does.",
    "b": "yes",
    "c": "1. albumin\n2. TTR\n3. transthyretin",
    "d": "gene A; gene B; gene C; gene D; gene E; chromosome 7",  # the sixth does not count
    "e": "ASA, aspirin, paracetamol and Naproxen.",
    "f": "The police kill the gunman.",
}


def test_measures_equal_those_by_hand(tmp_path):
    (tmp_path / "q.json").write_text(json.dumps({"questions": QUESTIONS}))
    lines = [{"id": key, "text": text} for key, text in ANSWERS.items()]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = evaluate_files("bioasq", tmp_path / "p.jsonl", tmp_path / "q.json")
    assert result["yesno"] == {
        "accuracy": 0.5,
        "f1_yes": pytest.approx(2 / 3),
        "f1_no": 0.0,
        "macro_f1": pytest.approx(1 / 3),
        "questions": 2,
    }
    assert result["factoid"] == {"strict": 0.0, "lenient": 0.5, "mrr": 0.25, "questions": 2}
    # Aspirin counts once, by its first name; its second name and paracetamol are wrong.
    listed = result["list"]
    assert (listed["precision"], listed["recall"]) == (0.5, pytest.approx(2 / 3))
    assert listed["f1"] == pytest.approx(4 / 7)
    assert result["summary"]["rouge_2"]["f1"] == 0.5
    assert result["by_answer"] == [1, 0, 0.5, 0, pytest.approx(4 / 7), 0.5]
    assert "accuracy" not in result
    low, high = result["interval"]
    assert 0 <= low < result["mean_grade"] < high <= 1


def test_submission_in_the_challenges_format_gets_the_same_grade(tmp_path):
    (tmp_path / "q.json").write_text(json.dumps({"questions": QUESTIONS}))
    answers = [
        {"id": "a", "exact_answer": "yes", "ideal_answer": "It does."},
        {"id": "c", "exact_answer": ["albumin", "TTR", "transthyretin"]},
        {"id": "e", "exact_answer": [["ASA"], ["aspirin"], ["paracetamol"], ["naproxen"]]},
        {"id": "f", "ideal_answer": "The police kill the gunman."},
    ]
    (tmp_path / "p.json").write_text(json.dumps({"questions": answers}))
    result = evaluate_files("bioasq", tmp_path / "p.json", tmp_path / "q.json")
    assert result["by_answer"] == [1, 0.5, pytest.approx(4 / 7), 0.5]
    assert result["references_without_answer"] == 2


@pytest.mark.parametrize("answer", [5, True, {"name": "x"}, [["x"], None], [[]], [7]])
def test_invalid_submission_is_an_error(tmp_path, answer):
    (tmp_path / "p.json").write_text(json.dumps({"questions": [{"id": "a", "exact_answer": answer}]}))
    with pytest.raises(UserError, match=r"p\.json: item 1: an answer must be a string or a list of strings"):
        read_predictions(tmp_path / "p.json", "bioasq")


def test_candidates_of_an_answer():
    assert candidates("- BRCA1\n* BRCA2.\n\n(3) p53\n", commas=False) == ["brca1", "brca2", "p53"]
    assert candidates("alpha, beta", commas=False) == ["alpha, beta"]
    assert candidates("a, b; c", commas=True) == ["a, b", "c"]
    assert candidates("a, b, and c", commas=True) == ["a", "b", "c"]
    assert candidates("", commas=True) == []


@pytest.mark.parametrize("question", QUESTIONS)
def test_empty_answer_scores_zero(question):
    assert grade("", question_of(question, "q")) == 0


@pytest.mark.parametrize(
    "record, said",
    [
        ({"type": "essay"}, "'type' must be one of"),
        ({"type": "yesno", "exact_answer": "perhaps"}, "must be yes or no"),
        ({"type": "list"}, "needs 'exact_answer'"),
        ({"type": "list", "exact_answer": [[3]]}, "must be non-empty strings"),
        ({"type": "list", "exact_answer": [["a"], []]}, "must be non-empty strings"),
        ({"type": "list", "exact_answer": [["a"], None]}, "must be non-empty strings"),
        ({"type": "factoid", "exact_answer": [["a", " "]]}, "must be non-empty strings"),
        ({"type": "factoid", "exact_answer": {"a": 1}}, "needs 'exact_answer'"),
        ({"type": "yesno", "exact_answer": True}, "needs 'exact_answer'"),
        ({"type": ["list"]}, "'type' must be one of"),
        ({"type": "summary", "ideal_answer": [None]}, "must be non-empty strings"),
        ({"type": "summary", "exact_answer": "x"}, "needs 'ideal_answer'"),
    ],
)
def test_invalid_question_is_an_error(record, said):
    with pytest.raises(UserError, match=f"q.json: item 1: .*{said}"):
        question_of(record, "q.json: item 1")


def test_rouge_equals_values_by_hand():
    # Lin (2004): "police killed the gunman" against "police kill the gunman".
    found = rouge_2("police kill the gunman", ["police killed the gunman"])
    assert (found.precision, found.recall, found.f1) == (
        pytest.approx(1 / 3),
        pytest.approx(1 / 3),
        pytest.approx(1 / 3),
    )
    # Of 6 skip-bigrams and 4 unigrams each, 3 and 3 are shared: police the, police gunman, the gunman.
    found = rouge_su4("police kill the gunman", ["police killed the gunman"])
    assert (found.precision, found.recall) == (0.6, 0.6)
    # At most four words between: a and g are too far apart, a and f are not.
    assert rouge_su4("a g", ["a b c d e f g"]).recall == pytest.approx(2 / (7 + 6 + 5 + 4 + 3 + 2))
    assert rouge_su4("a f", ["a b c d e f g"]).recall == pytest.approx(3 / (7 + 6 + 5 + 4 + 3 + 2))
    assert rouge_2("", ["a b"]).f1 == rouge_2("a", ["a"]).f1 == 0
    assert rouge_2("a b a b", ["a b"]).precision == pytest.approx(1 / 3)  # a bigram is matched as often as it occurs


def test_rouge_2_equals_rouge_score():
    package = pytest.importorskip("rouge_score.rouge_scorer", reason="needs rouge-score (extra eval)")
    scorer = package.RougeScorer(["rouge2"], use_stemmer=False)
    texts = "The cat sat on the mat.", "A cat is on the mat; the mat is red", "TP53-mutated cells, IL-6 and p<0.05", ""
    for prediction in texts:
        for reference in texts[:3]:
            theirs, ours = scorer.score(reference, prediction)["rouge2"], rouge_2(prediction, [reference])
            assert (ours.precision, ours.recall, ours.f1) == pytest.approx(tuple(theirs))
