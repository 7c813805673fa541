import json

from colm_jax.training.metrics import Log


def test_what_a_checkpoint_counts_on_is_in_a_closed_file(tmp_path):
    """A bucket that is mounted as a directory shows a file as it was when it was last closed."""
    log = Log(tmp_path, 0)
    log.write(1, {"loss": 1.0}, {})
    first = log._exact._file
    log.keep()
    assert first.closed
    log.write(2, {"loss": 0.5}, {})
    log.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]
