"""A stored report is loaded unchanged; any other file is a one-line error."""

import json

import pytest

from colm_jax.errors import UserError
from colm_jax.report.store import load_report, save_report
from tests.report.sample import EMPTY, REPORT


@pytest.mark.parametrize("report", [REPORT, EMPTY])
def test_report_round_trips(tmp_path, report):
    save_report(report, tmp_path / "report.json")
    assert load_report(tmp_path / "report.json") == report
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def _changed(path, **fields):
    save_report(REPORT, path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_other_versions_and_files_are_errors(tmp_path):
    path = tmp_path / "report.json"
    _changed(path, schema=0)
    with pytest.raises(UserError, match=r"report.json: schema 0 is not supported"):
        load_report(path)
    for fields in ({"more": 1}, {"answers": 3}, {"writers": ["base"]}):
        _changed(path, **fields)
        with pytest.raises(UserError, match=r"report.json: not a valid report"):
            load_report(path)
    for text in ("[]", "{"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"report.json: not a valid report"):
            load_report(path)
