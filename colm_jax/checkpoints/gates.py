"""Gates without their base: gate.safetensors and colm.json, a few kilobytes, for users who have the base already.

A gate reads the hidden states of the weights that it was trained with, so only that of a base which was not trained
itself is valid without it. colm.json holds the base's hash, by which it is known again wherever it is.
"""

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from colm_jax.checkpoints.card import model_card
from colm_jax.checkpoints.directory import TEAM_FILE, resolve, revision, weight_files
from colm_jax.checkpoints.identity import hash_base, hash_model
from colm_jax.checkpoints.team import GATE_FILE, TOKENIZER_FILES, pinned, read_facts
from colm_jax.errors import UserError
from colm_jax.storage import copy_file, files_below, make_directory, size_of, write_json, write_text

CONTENTS, GATE_ONLY = "contents", "gate"  # the field of colm.json, and its value where there is no base
_BASE_FILES = {"config.json", "model.safetensors.index.json", *TOKENIZER_FILES}
_DIGITS = 16  # of hashes in errors and tables


def is_gate_only(facts: Mapping[str, Any]) -> bool:
    """Return whether a colm.json is that of a gate without its base."""
    return facts.get(CONTENTS) == GATE_ONLY


def names_gate(model: str | Path) -> bool:
    """Return whether a path or Hub name is that of a gate without its base. Errors as `resolve`."""
    return is_gate_only(read_facts(resolve(model, weights=False)))


def gate_directory(gate: str | Path) -> Path:
    """Return the directory of a gate, or of a team, by its path or Hub name ("OWNER/NAME", "OWNER/NAME@REVISION").

    Of a team on the Hub, the base's weights are not downloaded.

    Raises:
      UserError: no such directory or Hub name, or no colm.json in it.
    """
    directory = resolve(gate, weights=False)
    if not (directory / TEAM_FILE).exists():
        raise UserError(
            f"gate {str(gate)!r}: no gate in it ({TEAM_FILE} is missing); `colm export --format gate` writes one"
        )
    return directory


def refuse_gate_only(base: str | Path, directory: Path) -> None:
    """Raise UserError where a gate is given as a base."""
    facts = read_facts(directory)
    if is_gate_only(facts):
        known = facts["provenance"]["base"]
        raise UserError(
            f"base {str(base)!r}: is a gate without its base; give it as the gate, and as the base {pinned(known)}, on "
            "which it was trained"
        )


def base_of_gate(facts: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return what colm.json says of the frozen base of a gate: "model", "revision", "sha256" and others.

    Raises:
      UserError: the base was trained with the gate, or nothing is said of it.
    """
    provenance = facts.get("provenance", {})
    trained, base = provenance.get("training", {}).get("trainable"), provenance.get("base", {})
    if not base.get("sha256") or trained is None:
        raise UserError(f"{where}: {TEAM_FILE} does not say which base its gate was trained on; use the whole team")
    if trained != "gate":
        raise UserError(
            f"{where}: its base was trained with the gate (trainable {trained}), which is wrong for any other weights; "
            "use the whole team"
        )
    return base


def check_base(gate: Path, base: str | Path, directory: Path) -> None:
    """Raise UserError if a base is not the one that a gate was trained on.

    Args:
      gate: the gate's directory.
      base: the base's name, for the error.
      directory: the base's, with its weights.
    """
    known = base_of_gate(read_facts(gate), str(gate))
    found = hash_base(directory, known.get("file"))
    # Of a team as the base, training hashed the gate in its directory, too.
    if known["sha256"] != found and known["sha256"] != hash_model(directory):
        raise UserError(
            f"gate {gate}: was trained on the base {pinned(known)} with sha256 {known['sha256'][:_DIGITS]}, and "
            f"{base} has sha256 {found[:_DIGITS]}; its decisions would be wrong, give the base that it was trained on"
        )


def has_weights(directory: Path) -> bool:
    """Return whether all weights of a model are on this machine: of a Hub name they may not be downloaded yet."""
    try:
        return bool(weight_files(directory))
    except UserError:
        return False


def write_gate(team: Path, directory: Path, leave: Set[str] = frozenset()) -> None:
    """Write the gate of a team, without its base.

    Everything in the team's directory that is not the base's is copied; colm.json is marked, and written last.

    Args:
      team: the team's directory.
      directory: where to write, on disk.
      leave: files of the team's directory that are not the team's.

    Raises:
      UserError: the base was trained, or there is no gate.
    """
    facts = read_facts(team)
    if not facts.get("experts"):
        raise UserError(f"{team}: has no experts, and so no gate")
    base = _found_again(base_of_gate(facts, str(team)))
    base_files = _BASE_FILES | {path.name for path in weight_files(team)} | {"README.md", TEAM_FILE}
    for name in files_below(team):
        if name not in base_files | leave:
            make_directory((directory / name).parent)
            copy_file(team / name, directory / name)
    facts = {**facts, CONTENTS: GATE_ONLY, "provenance": {**facts["provenance"], "base": base}}
    write_text(directory / "README.md", model_card(facts))
    write_json(directory / TEAM_FILE, facts)


def _found_again(base: dict[str, Any]) -> dict[str, Any]:
    """Return what is known of a base, with the hash of what it computes and the name of its GGUF file.

    Where the base is not here any more, or has changed, the hash stays that of training.
    """
    file = base["model"].replace("\\", "/").rpartition("/")[2].rpartition(":")[2]
    known = base | ({"file": file} if file.endswith(".gguf") else {})
    try:
        directory = resolve(pinned(base), weights=False)
        if has_weights(directory) and hash_model(directory) == base["sha256"]:
            return known | {"sha256": hash_base(directory)}
    except UserError:
        pass
    return known


def describe_gate(gate: str | Path, base: str | Path | None = None) -> dict[str, Any]:
    """Return the facts of a gate without its base, or of a team's gate.

    Args:
      gate: its directory or Hub name.
      base: a model; the facts then say whether the gate "fits" it, which is None where its weights are not here, and
        "why_not".

    Raises:
      UserError: as `gate_directory`; of `base`, as `resolve`.
    """
    directory = gate_directory(gate)
    facts = read_facts(directory)
    known = facts.get("provenance", {}).get("base", {})
    found: dict[str, Any] = {
        "gate": str(gate),
        "directory": str(directory),
        "revision": revision(directory),
        "format": "gate" if is_gate_only(facts) else "team",
        "bytes_on_disk": size_of(directory / GATE_FILE) if (directory / GATE_FILE).exists() else None,
        "shape": facts.get("gate"),
        "base": known | {"name": pinned(known) if known else None},
        "experts": facts.get("experts", []),
        "threshold": facts.get("threshold"),
    }
    if base is not None:
        where, why_not = resolve(base, weights=False), None
        fits: bool | None = None
        if has_weights(where):
            try:
                check_base(directory, base, where)
                fits = True
            except UserError as error:
                fits, why_not = False, str(error)
        found |= {"model": str(base), "fits": fits, "why_not": why_not}
    return found
