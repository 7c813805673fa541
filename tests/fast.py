"""The fast tier, `pytest -m fast`: test files of seconds, at least one for each package (tests/test_tiers.py)."""

FILES = frozenset(
    """
    test_checks.py test_docs.py test_links.py test_reference.py test_repository.py test_seeds.py
    bench/test_train.py
    calibration/test_figures.py calibration/test_risk.py
    checkpoints/test_outline.py checkpoints/test_rope.py checkpoints/test_directory.py
    cli/test_faults.py
    data/test_batches.py data/test_chat.py data/test_convert.py
    decoding/test_calls.py decoding/test_risk.py
    models/test_sampling.py
    demo/test_pair.py
    experts/test_guest.py
    evaluation/test_choices.py evaluation/test_compare.py evaluation/test_numbers.py evaluation/test_final_answer.py
    evaluation/test_marks.py evaluation/test_bioasq.py evaluation/test_judges.py evaluation/test_math_answers.py
    experts/remote/test_address.py experts/remote/test_redaction.py
    labels/test_weak.py
    models/test_gate.py models/test_decoder.py models/test_feed_forward.py
    objectives/test_supervised.py objectives/test_latent.py
    parallel/test_mesh.py
    pipeline/test_files.py pipeline/test_stage.py
    plan/test_launch.py
    report/test_contents.py report/test_html.py report/test_inspection.py report/test_markdown.py report/test_store.py
    report/test_terminal.py report/test_words.py
    scoring/test_candidates.py scoring/test_head.py scoring/test_scorer.py
    serving/test_schema.py
    settings/test_fields.py settings/test_gin_edge.py
    storage/test_files.py storage/test_text.py
    sweep/test_trials.py
    text/test_detokenizer.py
    training/test_metrics.py
    """.split()
)

# Tests of these files that take longer.
SLOW = frozenset(
    """
    bench/test_train.py::test_without_torch_the_rest_is_measured_and_the_reason_said
    demo/test_pair.py::test_equal_seeds_make_equal_pairs_that_load_as_a_team
    """.split()
)


def is_fast(path: str, function: str) -> bool:
    """Whether a test belongs to the fast tier, by its file below tests/ and its function's name."""
    return path in FILES and f"{path}::{function}" not in SLOW
