"""Names of models on the Hub: OWNER/NAME, with :FILE.gguf and @REVISION or without."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from colm_jax.errors import UserError

FORM = "OWNER/NAME[:FILE.gguf][@REVISION]"
_LOCAL = re.compile(r"^(/|~|\\\\|[A-Za-z]:[\\/]|file:|gs://)|^\.{1,2}([/\\]|$)")


@dataclass(frozen=True)
class HubName:
    """A model on the Hub."""

    repository: str  # OWNER/NAME
    file: str | None = None  # a GGUF file
    revision: str | None = None  # branch, tag or commit

    @classmethod
    def parse(cls, text: str) -> "HubName":
        """Return the name.

        Raises:
          UserError: it is none; by huggingface_hub's rules.
        """
        name, _, revision = text.partition("@")
        repository, _, file = name.partition(":")
        if repository.count("/") != 1 or (":" in name and not file.endswith(".gguf")) or text.endswith("@"):
            raise UserError(f"{text!r}: is no name of the Hub, which is {FORM}")
        try:
            validate_repo_id(repository)
        except HFValidationError as error:
            raise UserError(f"{text!r}: is no name of the Hub: {error}") from None
        return cls(repository, file or None, revision or None)

    @property
    def model(self) -> str:
        """The name without the revision."""
        return self.repository if self.file is None else f"{self.repository}:{self.file}"


def is_local(text: str) -> bool:
    """Return whether a string is the path of a file or directory of this machine, or of a bucket."""
    return _LOCAL.match(text) is not None


def last_part(path: str) -> str:
    """Return the name of a file or directory without the folders above it."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def name_on_hub(model: Mapping[str, Any]) -> HubName | None:
    """Return the name of a base or expert of a colm.json on the Hub; None for local ones and endpoints."""
    name, revision = str(model.get("model", "")), model.get("revision")
    if is_local(name) or "://" in name or (revision is None and Path(name).is_dir()):
        return None
    try:
        found = HubName.parse(name)
    except UserError:
        return None
    return HubName(found.repository, found.file, revision)
