"""GGUF files wherever a model is named: paths, directories, Hub names; converted once, and again when they change."""

import json
import os
import threading
from pathlib import Path

import pytest
from gguf.constants import GGMLQuantizationType as Type

from colm_jax.checkpoints.directory import resolve, revision, weight_files
from colm_jax.checkpoints.gguf import directory as gguf_directory
from colm_jax.cli.main import main
from colm_jax.errors import UserError
from colm_jax.pipeline.stage import hash_model
from colm_jax.storage import shown
from tests.checkpoints.gguf.write import write_directory, write_tiny

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_file_becomes_a_directory_whose_weights_stay_in_the_file(tmp_path, cache):
    file = write_tiny(tmp_path / "tiny.gguf", "llama", Type.Q8_0)
    directory = resolve(file)
    assert directory.is_relative_to(cache)
    assert directory.name == "tiny.gguf"
    assert weight_files(directory) == [file]
    assert shown(directory) == file
    assert revision(directory) is None
    assert {path.name for path in directory.iterdir()} == {
        "config.json",
        "generation_config.json",
        "source.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(path.stat().st_size for path in directory.iterdir()) < 20_000


def test_file_is_converted_once_and_again_when_it_changes(tmp_path, monkeypatch):
    converted = []
    read = gguf_directory.read_header
    monkeypatch.setattr(gguf_directory, "read_header", lambda file: converted.append(file) or read(file))
    file = write_tiny(tmp_path / "tiny.gguf", "llama")
    first = resolve(file)
    assert resolve(str(file)) == first
    assert resolve(first) == first
    assert len(converted) == 1
    write_tiny(file, "llama/linear")
    os.utime(file, ns=(0, 0))
    second = resolve(file)
    assert second != first
    assert json.loads((second / "config.json").read_text())["rope_parameters"]["rope_type"] == "linear"
    assert len(converted) == 2


def test_two_processes_at_once_convert_once(tmp_path, monkeypatch):
    converted, found = [], []
    read = gguf_directory.read_header
    monkeypatch.setattr(gguf_directory, "read_header", lambda file: converted.append(file) or read(file))
    file = write_tiny(tmp_path / "tiny.gguf", "llama")
    threads = [threading.Thread(target=lambda: found.append(resolve(file))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 4
    assert len(converted) == 1


def test_failed_conversion_leaves_nothing(tmp_path, cache):
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(UserError):
        resolve(file)
    assert not [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_directory_with_one_file_is_accepted_and_with_several_is_an_error(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    file = write_tiny(folder / "a.gguf")
    assert weight_files(resolve(folder)) == [file]
    write_tiny(folder / "b.gguf")
    with pytest.raises(UserError, match=r"holds several GGUF files \(a\.gguf, b\.gguf\); name one of them"):
        resolve(folder)


def test_safetensors_go_first(tmp_path):
    folder = write_directory(tmp_path / "folder", "llama")
    write_tiny(folder / "a.gguf", "llama/linear")
    assert resolve(folder) == folder
    assert [file.name for file in weight_files(folder)] == ["model.safetensors"]


def test_a_directory_elsewhere_cannot_name_files(tmp_path):
    folder = write_directory(tmp_path / "folder", "llama")
    (folder / "source.json").write_text(json.dumps({"files": ["/etc/passwd"]}))
    assert [file.name for file in weight_files(folder)] == ["model.safetensors"]


def test_weights_are_part_of_the_hash(tmp_path):
    first = hash_model(resolve(write_tiny(tmp_path / "tiny.gguf")))
    copy = tmp_path / "other"
    copy.mkdir()
    (copy / "tiny.gguf").write_bytes((tmp_path / "tiny.gguf").read_bytes())
    assert hash_model(resolve(copy / "tiny.gguf")) == first
    data = bytearray((copy / "tiny.gguf").read_bytes())
    data[-4] ^= 1
    (copy / "tiny.gguf").write_bytes(data)
    assert hash_model(resolve(copy / "tiny.gguf")) != first


def test_missing_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"no such directory or GGUF file"):
        resolve(tmp_path / "tiny.gguf")
    file = write_tiny(tmp_path / "tiny.gguf")
    directory = resolve(file)
    file.unlink()
    with pytest.raises(UserError, match=rf"{file}: weights file is missing"):
        weight_files(directory)


@pytest.mark.parametrize("wanted", [None, "main"])
def test_hub_file_is_downloaded_alone_at_its_revision(wanted, tmp_path, monkeypatch):
    snapshot, asked = tmp_path / "hub" / "snapshots" / COMMIT, []
    snapshot.mkdir(parents=True)
    blob = write_tiny(tmp_path / "hub" / "blob")
    (snapshot / "tiny.gguf").symlink_to(blob)

    def download(repository, name, revision):
        asked.append((repository, name, revision))
        return str(snapshot / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    directory = resolve("owner/name:tiny.gguf" + ("" if wanted is None else f"@{wanted}"))
    assert asked == [("owner/name", "tiny.gguf", wanted)]
    assert revision(directory) == COMMIT
    assert weight_files(directory) == [snapshot / "tiny.gguf"]


def test_all_parts_of_a_hub_file_are_downloaded(tmp_path, monkeypatch):
    asked = []

    def download(repository, name, revision):
        asked.append(name)
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(UserError, match=r"tiny-00001-of-00002\.gguf: is missing"):
        resolve("owner/name:tiny-00001-of-00002.gguf")
    assert asked == ["tiny-00001-of-00002.gguf", "tiny-00002-of-00002.gguf"]


def test_hub_repository_with_only_gguf_files_is_an_error_that_lists_them(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    files = ["a.Q4_0.gguf", "b-00001-of-00002.gguf", "b-00002-of-00002.gguf", "README.md"]
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda *_, **__: files)
    expected = (
        r"'owner/name': has only GGUF files \(a\.Q4_0\.gguf, b-00001-of-00002\.gguf\); .* owner/name:a\.Q4_0\.gguf"
    )
    for weights in (True, False):
        with pytest.raises(UserError, match=expected):
            resolve("owner/name", weights=weights)


def test_hub_repository_with_both_formats_reads_safetensors(tmp_path, monkeypatch):
    folder = write_directory(tmp_path / "folder", "llama")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(folder))
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda *_, **__: pytest.fail("asks"))
    assert resolve("owner/name") == folder


@pytest.mark.parametrize("name", ["owner/name:weights.bin", "owner/name:"])
def test_hub_file_of_another_kind_is_an_error(name):
    with pytest.raises(UserError, match=r"is no GGUF file; write owner/name:FILE\.gguf"):
        resolve(name)


def test_errors_and_tables_name_the_file_that_was_given(tmp_path, capsys, cache):
    a, b = write_tiny(tmp_path / "a.gguf"), write_tiny(tmp_path / "b.gguf", "llama/linear")
    assert main(["inspect", str(a), str(b)]) == 0
    out = capsys.readouterr().out
    assert str(cache) not in out
    assert main(["inspect", str(a), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert str(cache) not in json.dumps(facts)
    assert Path(facts["models"][0]["directory"] if "models" in facts else facts["directory"]) == a


@pytest.mark.parametrize("name", ["owner/name:../../tiny.gguf", "owner/name:a:b.gguf"])
def test_hub_file_name_that_cannot_be_is_an_error(name):
    with pytest.raises(UserError, match=rf"^model '{name}': .*not available from the Hub: "):
        resolve(name)


def test_only_files_count_as_gguf_files(tmp_path):
    (tmp_path / "folder" / "a.gguf").mkdir(parents=True)
    assert resolve(tmp_path / "folder") == tmp_path / "folder"
    file = write_tiny(tmp_path / "folder" / "b.gguf")
    assert weight_files(resolve(tmp_path / "folder")) == [file]


def test_more_parts_than_supported_is_an_error_that_says_so(tmp_path):
    file = write_tiny(tmp_path / "a-00001-of-99999.gguf")
    with pytest.raises(UserError, match="is one of 99999 parts; from 1 to 1000 are supported"):
        resolve(file)


@pytest.mark.parametrize("content", ["{}", '{"files": []}', '{"files": [3]}', '{"files": "a.gguf"}'])
def test_damaged_directory_in_the_cache_is_an_error_that_says_what_to_remove(content, tmp_path):
    directory = resolve(write_tiny(tmp_path / "tiny.gguf"))
    (directory / "source.json").write_text(content)
    with pytest.raises(UserError, match=rf"source\.json: lists no files; remove {directory.parent} and rerun"):
        weight_files(directory)


def test_cache_that_cannot_be_made_is_an_error_that_names_it(tmp_path, monkeypatch, capsys):
    file = write_tiny(tmp_path / "tiny.gguf")
    monkeypatch.setenv("COLM_CACHE", str(file))
    assert main(["inspect", str(file)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"COLM_CACHE {file}: cannot be made: File exists; name another folder" in line
