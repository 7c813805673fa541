"""What is published of a team, or of a gate without its base: its files, colm.json and card as others get them.

Everything here is offline; `checkpoints.hub` uploads it. Only files that belong to a team are published, and nothing
that names a place on this machine.
"""

import ipaddress
import json
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import ModelCard, ModelCardData
from yaml import YAMLError

from colm_jax.checkpoints.card import Stated, card_data, model_card
from colm_jax.checkpoints.directory import TEAM_FILE, open_weights
from colm_jax.checkpoints.gates import base_of_gate, is_gate_only
from colm_jax.checkpoints.hub_names import FORM, HubName, is_local, last_part, name_on_hub
from colm_jax.checkpoints.huggingface import match_tensors, read_config
from colm_jax.checkpoints.team import GATE_FILE, TOKENIZER_FILES, read_facts, read_gate
from colm_jax.errors import UserError
from colm_jax.settings.models import is_endpoint
from colm_jax.storage import entries, path_of, read_json, read_text, size_of
from colm_jax.text.tokenizer import load_tokenizer

CARD = "README.md"
# Files of a team; what else lies in its directory is not published.
_OF_TEAM = (
    *(TEAM_FILE, "*.safetensors", "*.safetensors.index.json", "config.json", *TOKENIZER_FILES),
    *("vocab.json", "vocab.txt", "merges.txt", "*.model", "*.jinja"),
)
_BESIDE = (CARD, "LICENSE*", "LICENCE*", "NOTICE*")
_SECRETS = re.compile(r"\bhf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}|-----BEGIN [A-Z ]*PRIVATE KEY-----")
_PATH_FIELDS = re.compile(r"name_or_path$|_file$")  # of tokenizer_config.json: where another program had its files
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")


@dataclass(frozen=True)
class Upload:
    """What is published of a directory."""

    name: str  # OWNER/NAME
    files: Mapping[str, Path | bytes]  # by the name in the repository
    facts: Mapping[str, Any]  # colm.json as it is published
    card: Mapping[str, Any]  # the card's metadata
    left_out: tuple[str, ...]  # entries of the directory that are no files of a team
    notes: tuple[str, ...]  # what the owner should know

    @property
    def sizes(self) -> dict[str, int]:
        """The bytes of each file."""
        return {name: len(held) if isinstance(held, bytes) else size_of(held) for name, held in self.files.items()}

    @property
    def experts(self) -> list[str]:
        """The experts as others load them; without a revision where it is not known."""
        return [_whole_name(expert) for expert in self.facts.get("experts", [])]


def is_of_team(name: str) -> bool:
    """Return whether a file of a repository is one of a team's: those that are not part of an upload are stale.

    A team has no folders.
    """
    return "/" not in name and any(fnmatchcase(name, pattern) for pattern in _OF_TEAM)


def prepare(
    team: str | Path,
    name: str,
    stated: Stated | None = None,
    experts: Sequence[str] | None = None,
    base_model: str | None = None,
    leave: Set[str] = frozenset(),
) -> Upload:
    """Validate a team, or a gate without its base, and return what is to be published.

    Args:
      team: its directory, as `save_team`, `write_gate` or `colm export` write it.
      name: of the repository, OWNER/NAME.
      stated: what the card shall say beside colm.json.
      experts: the names by which others load the experts, one for each; None: those of colm.json.
      base_model: the name by which others find the base; None: that of colm.json.
      leave: files of the directory that are not the team's.

    Raises:
      UserError: no team, a damaged one, a name that the Hub does not take, an expert that others cannot load, or a
        secret in a text file.
    """
    if "@" in name or ":" in name or name.count("/") != 1:
        raise UserError(f"{name!r}: is no name of a repository, which is OWNER/NAME")
    wanted = HubName.parse(name)
    stated = _checked(stated or Stated(), wanted.repository)
    directory = _directory(team)
    facts = read_facts(directory)
    _validate(directory, facts)
    notes: list[str] = []
    published = _published(facts, experts, base_model, notes)
    text = _card(directory, facts, published, stated)
    names = [path.name for path in entries(directory)]
    wanted_names = [n for n in names if n not in leave and any(fnmatchcase(n, p) for p in (*_OF_TEAM, *_BESIDE))]
    files: dict[str, Path | bytes] = {n: directory / n for n in wanted_names if (directory / n).is_file()}
    files[TEAM_FILE], files[CARD] = _json(published), text.encode()
    if "tokenizer_config.json" in files:
        files["tokenizer_config.json"] = _without_paths(directory / "tokenizer_config.json")
    _refuse_secrets(files)
    card = ModelCard(text).data.to_dict()
    if not card.get("license"):
        notes.append("no licence is named (license), so that others may not use it")
    left_out = tuple(n for n in names if n not in files and n not in leave)
    return Upload(wanted.repository, dict(sorted(files.items())), published, card, left_out, tuple(notes))


def _directory(team: str | Path) -> Path:
    """Return the directory of a team or gate."""
    directory = path_of(team)
    if not directory.is_dir():
        raise UserError(f"{team}: no such directory")
    if not (directory / TEAM_FILE).exists():
        within = directory / "team"
        hint = f"; name {within}" if (within / TEAM_FILE).exists() else "; colm run and colm export write one"
        raise UserError(f"{team}: is no team ({TEAM_FILE} is missing){hint}")
    return directory


def _validate(directory: Path, facts: Mapping[str, Any]) -> None:
    """Read everything but the values of weights, as loading will."""
    if is_gate_only(facts):
        base_of_gate(facts, str(directory))
    else:
        tokenizer = load_tokenizer(directory)
        read_gate(directory, tokenizer, read_config(directory).width)
        match_tensors(directory, values=False)
    with open_weights(directory / GATE_FILE) as gate:
        names = [*gate.keys()]
        rows = gate.get_slice("gate.weight").get_shape()[0] if "gate.weight" in names else None
    count = len(facts.get("experts", []))
    if rows != count:
        raise UserError(
            f"{directory / GATE_FILE}: holds {'no gate.weight' if rows is None else f'a gate for {rows} experts'}, and "
            f"{TEAM_FILE} names {count}"
        )


def _published(
    facts: Mapping[str, Any], experts: Sequence[str] | None, base_model: str | None, notes: list[str]
) -> dict[str, Any]:
    """Return colm.json as it is published; what the owner should know of it is added to `notes`."""
    known = facts.get("experts", [])
    if experts is not None and len(experts) != len(known):
        raise UserError(f"experts: {len(experts)} names for {len(known)} experts; name one for each, in order")
    named = [dict(expert) for expert in known]
    for m, name in enumerate(experts or ()):
        named[m] |= _named(name)
    for m, expert in enumerate(named, start=1):
        if is_endpoint(expert["model"]):
            if _is_private(expert["model"]):
                raise UserError(_unreachable(m, expert))
            notes.append(f"expert {m} is the endpoint {expert['model']}; others need access to it")
        elif (found := name_on_hub(expert)) is None:
            raise UserError(_unreachable(m, expert))
        elif found.revision is None:
            notes.append(f"expert {m}, {found.model}, has no revision; it is pinned to its newest commit when pushed")
    provenance = dict(facts.get("provenance", {}))
    if "base" in provenance:
        base = provenance["base"] | ({} if base_model is None else _named(base_model))
        provenance["base"] = base
        if name_on_hub(base) is None:
            where = f"the base is known as {base['model']} only, which others cannot find"
            if is_gate_only(facts):
                raise UserError(f"{where}; a gate needs it: name it as others load it (base_model), as {FORM}")
            notes.append(f"{where}; name it as others do (base_model)")
    elif base_model is not None:
        raise UserError(f"base_model {base_model}: {TEAM_FILE} says nothing of the base")
    published = {**facts, "experts": named}
    return _reduced(published | ({"provenance": provenance} if provenance else {}))


def _named(name: str) -> dict[str, Any]:
    """Return what colm.json says of a model with this name."""
    if is_endpoint(name):
        return {"model": name, "revision": None}
    found = HubName.parse(name)
    return {"model": found.model, "revision": found.revision}


def _whole_name(model: Mapping[str, Any]) -> str:
    name, revision = model["model"], model.get("revision")
    return name if revision is None else f"{name}@{revision}"


def _unreachable(m: int, expert: Mapping[str, Any]) -> str:
    return (
        f"expert {m} is {expert['model']}, which others cannot load; publish it too, and name every expert as others "
        f"load it (experts), in order, as {FORM}"
    )


def _is_private(address: str) -> bool:
    """Return whether an endpoint is one of this machine or its network."""
    host = urlsplit(address).hostname or ""
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return "." not in host or host.endswith((".local", ".internal", ".lan", ".localdomain"))


def _reduced(value: Any) -> Any:
    """Return a JSON value in which paths of this machine are names of files and directories."""
    if isinstance(value, Mapping):
        return {key: _reduced(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_reduced(item) for item in value]
    return last_part(value) if isinstance(value, str) and is_local(value) else value


def _without_paths(config: Path) -> Path | bytes:
    """Return tokenizer_config.json, without the places where another program had its files."""
    found = read_json(config)
    fields = {k: _reduced(v) if _PATH_FIELDS.search(k) else v for k, v in found.items()}
    return config if fields == found else _json(fields)


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _checked(stated: Stated, name: str) -> Stated:
    """Return what is stated, with the repository's name."""
    if stated.license is not None and not _LICENSE.fullmatch(stated.license):
        raise UserError(
            f"license {stated.license!r}: is no identifier of a licence on the Hub, as apache-2.0, mit, llama3.2, other"
        )
    if stated.license == "other" and not (stated.license_name and stated.license_link):
        raise UserError("license 'other': needs its name (license_name) and where it is found (license_link)")
    if stated.license != "other" and (stated.license_name or stated.license_link):
        raise UserError("license_name and license_link are those of license 'other'")
    for dataset in stated.datasets:
        if dataset.count("/") > 1 or is_local(dataset):
            raise UserError(f"dataset {dataset!r}: is no name of a data set on the Hub, OWNER/NAME")
    return Stated(name, stated.license, stated.license_name, stated.license_link, stated.datasets, stated.language)


def _card(directory: Path, facts: dict[str, Any], published: dict[str, Any], stated: Stated) -> str:
    """Return the model card: the owner's text if it was edited, with the metadata that it lacks.

    Raises:
      UserError: metadata that cannot be read.
    """
    path = directory / CARD
    own = read_text(path) if path.exists() else None
    if own is None or own == model_card(facts):
        return model_card(published, stated)
    try:
        card = ModelCard(own)
    except (ValueError, YAMLError) as error:
        raise UserError(f"{path}: its metadata cannot be read: {' '.join(str(error).split())}") from None
    given = {k: v for k, v in card_data({}, stated).items() if k.startswith(("license", "datasets", "language"))}
    kept = {key: value for key, value in card.data.to_dict().items() if value is not None}
    computed = card_data(published, stated)
    tags = [*dict.fromkeys([*kept.get("tags", []), *computed["tags"]])]
    of_base = {key: value for key, value in computed.items() if key.startswith("base_model")}
    card.data = ModelCardData(**{**computed, **kept, **of_base, **given, "tags": tags})
    return str(card)


def _refuse_secrets(files: Mapping[str, Path | bytes]) -> None:
    """Raise UserError for a text file that holds an access token or a private key."""
    for name, held in files.items():
        if name.endswith((".safetensors", ".model", "tokenizer.json", "index.json", "vocab.json", ".txt")):
            continue
        text = held.decode() if isinstance(held, bytes) else read_text(held)
        if found := _SECRETS.search(text):
            raise UserError(f"{name}: holds what looks like a secret ({found[0][:6]}...); remove it")
