"""What a repository's host and its visitors read: workflows, forms, and that statements in them hold."""

import re
import tomllib
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
PAGES = ("CONTRIBUTING.md", "SECURITY.md")


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def setup():
    found = ConfigParser()
    found.read(ROOT / "setup.cfg")
    return found


def extras_in(text):
    return {extra for group in re.findall(r"pip install -e '\.\[([\w,]+)\]'", text) for extra in group.split(",")}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_pins_its_actions_limits_its_time_and_its_rights(path):
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] > 0
        for step in job["steps"]:
            assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", step["uses"]) if "uses" in step else step["run"]
            if step.get("uses", "").startswith("actions/checkout"):
                assert step["with"]["fetch-depth"] == 0  # the version follows from the tags
    assert extras_in(path.read_text()) <= {*setup()["options.extras_require"]}


def test_the_workflows_test_every_python_that_the_package_supports():
    matrix = read(ROOT / ".github/workflows/tests.yml")["jobs"]["fast"]["strategy"]["matrix"]
    named = re.findall(r"Python :: (3\.\d+)", setup()["metadata"]["classifiers"])
    assert matrix["python"] == named == ["3.11", "3.12", "3.13"]


def test_only_publishing_may_ask_for_a_token():
    jobs = {(path.stem, name): job for path in WORKFLOWS for name, job in read(path)["jobs"].items()}
    assert {key for key, job in jobs.items() if "permissions" in job} == {("release", "publish")}
    assert jobs["release", "publish"]["permissions"] == {"id-token": "write"}
    assert not any("secrets." in path.read_text() for path in WORKFLOWS)


def test_hooks_have_the_versions_that_the_package_tests_with():
    hooks = {repo["repo"]: repo for repo in read(ROOT / ".pre-commit-config.yaml")["repos"]}
    (ruff,) = (repo["rev"] for name, repo in hooks.items() if name.endswith("ruff-pre-commit"))
    assert re.search(r"^ruff==(\d+\.\d+)\.\*$", setup()["options.extras_require"]["test"], re.M)[1] in ruff
    assert all(re.fullmatch(r"v\d+\.\d+\.\d+", repo["rev"]) for name, repo in hooks.items() if name != "local")


def test_the_citation_names_the_paper():
    paper = read(ROOT / "CITATION.cff")["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]] == ["Shen", "Lang", "Wang", "Kim", "Sontag"]
    assert paper["url"].rpartition("/")[2] in paper["doi"] and paper["url"] in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    named = {path for path in re.findall(r"`([\w./-]+(?:\.\w+|/))`", text) if "/" in path and "NAME" not in path}
    assert named
    for path in named:
        inside = ROOT / "colm_jax", ROOT / "colm_jax/checkpoints", ROOT / "tests/pipeline"
        assert any((folder / path).exists() for folder in (ROOT, *inside)), path


def test_the_public_modules_of_the_page_are_those_that_are_tested():
    from tests.test_api import PUBLIC

    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## What is public")[2].partition("## ")[0]
    named = re.search(r"`__all__` of (.*?), with their", text, re.S)[1]
    assert set(re.findall(r"`(colm_jax[\w.]*)`", named)) == {*PUBLIC}


def test_the_version_follows_from_tags():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert any(need.startswith("setuptools-scm") for need in build["build-system"]["requires"])
    assert "version" not in setup()["metadata"] and re.fullmatch(
        r"\d+\.\d+\.\d+", build["tool"]["setuptools_scm"]["fallback_version"]
    )
