"""The model card (README.md) of a team or of a gate without its base: its models, training data and calibration.

Its metadata are what the Hub searches and links by; `card_data` makes them, and huggingface_hub writes them as YAML.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import ModelCardData

from colm_jax.checkpoints.hub_names import last_part, name_on_hub

LIBRARY = "colm-jax"
_UNKNOWN = "to be filled in"
_NO_LICENSE = f"license: # {_UNKNOWN}: base, experts and data each have their own terms\n"


@dataclass(frozen=True)
class Stated:
    """What colm.json does not hold, and the owner says of a team."""

    name: str | None = None  # of its repository on the Hub
    license: str | None = None  # of what is in the repository, an identifier of the Hub: "apache-2.0", "mit", "other"
    license_name: str | None = None  # of license "other"
    license_link: str | None = None
    datasets: tuple[str, ...] = ()  # training data that are on the Hub
    language: tuple[str, ...] = ()  # codes: "en"


def card_data(facts: Mapping[str, Any], stated: Stated | None = None) -> dict[str, Any]:
    """Return the card's metadata, without those that are not known.

    Args:
      facts: colm.json.
      stated: what else is known; None: nothing.
    """
    stated = stated or Stated()
    provenance = facts.get("provenance", {})
    base = name_on_hub(provenance.get("base", {}))
    frozen = provenance.get("training", {}).get("trainable") == "gate"
    named = [name for name in map(name_on_hub, facts.get("experts", [])) if name is not None]
    found: dict[str, Any] = {
        "license": stated.license,
        "license_name": stated.license_name,
        "license_link": stated.license_link,
        "library_name": LIBRARY,
        "pipeline_tag": "text-generation",
        "base_model": None if base is None else base.repository,
        # Of a frozen base only the gate is new.
        "base_model_relation": None if base is None else "adapter" if frozen else "finetune",
        "datasets": list(stated.datasets),
        "language": list(stated.language),
        "tags": ["co-llm", LIBRARY, "gate" if facts.get("contents") == "gate" else "team"],
        "experts": [name.model if name.revision is None else f"{name.model}@{name.revision}" for name in named],
    }
    return {key: value for key, value in found.items() if value not in (None, [])}


def model_card(facts: dict[str, Any], stated: Stated | None = None) -> str:
    """Return the model card of a team, or of a gate without its base.

    Args:
      facts: colm.json.
      stated: what else is known; None: nothing, and licences are left for the owner to fill in.
    """
    stated = stated or Stated()
    provenance, experts = facts.get("provenance", {}), facts.get("experts", [])
    head = ModelCardData(**card_data(facts, stated)).to_yaml()
    lines = ["---", f"{'' if stated.license else _NO_LICENSE}{head}", "---", "", *_contents(facts)]
    lines += [
        "| model | name | revision | sha256 |",
        "| --- | --- | --- | --- |",
        _row("base", provenance.get("base", {})),
        *(_row(f"expert {m + 1}", expert) for m, expert in enumerate(experts)),
        "",
        "## Training",
        "",
    ]
    for split, file in provenance.get("data", {}).items():
        lines.append(f"- {split}: `{file['file']}`, sha256 `{file['sha256'][:16]}`")
    lines += [f"- {name}: {value}" for name, value in provenance.get("training", {}).items()]
    vocabulary = facts.get("shared_vocabulary")
    if vocabulary and facts.get("spans") != "text":
        lines.append(f"- shared vocabulary: {vocabulary['words']} tokens; no other token is ever written")
    lines += ["", "## Calibration", ""]
    if facts.get("threshold") is None:
        lines.append("None: pass a threshold, or run `colm calibrate`.")
    else:
        found = facts.get("calibration", {})
        shown = {"threshold": facts["threshold"], **{k: found.get(k) for k in ("metric", "score", "deferral_rate")}}
        lines += [f"- {name.replace('_', ' ')}: {_number(value)}" for name, value in shown.items() if value is not None]
    lines += ["", "## Use", "", *_use(facts, stated), "", "## Licences", "", *_licences(facts, stated), ""]
    return "\n".join(lines)


def _contents(facts: Mapping[str, Any]) -> list[str]:
    """Return the heading, and what the repository holds."""
    unit = "span" if facts.get("spans") == "text" else "token"
    if facts.get("contents") == "gate":
        return [
            "# A Co-LLM gate",
            "",
            f"A gate without models. `gate.safetensors` decides, {unit} by {unit}, when an expert writes instead of",
            "the base; `colm.json` names the experts and the threshold. The gate reads the base's hidden states, and",
            "the base was not trained: the gate is valid for the base below alone, known by its hash wherever it is.",
            "",
        ]
    return [
        "# A Co-LLM team",
        "",
        f"The weights here are the base's, an ordinary checkpoint of its family. `gate.safetensors` decides, {unit} by",
        f"{unit}, when an expert writes instead; `colm.json` names the experts and the threshold. The experts' weights",
        "are not in this directory.",
        "",
    ]


def _use(facts: Mapping[str, Any], stated: Stated) -> list[str]:
    """Return how to load it."""
    here = stated.name or "."
    command, arguments = f"--base {here}", f'base="{here}"'
    if facts.get("contents") == "gate":
        known = name_on_hub(facts.get("provenance", {}).get("base", {}))
        base = "BASE" if known is None else known.model
        base += "" if known is None or known.revision is None else f"@{known.revision}"
        command, arguments = f"--base {base} --gate {here}", f'base="{base}", gate="{here}"'
    return [
        "```bash",
        f"colm generate {command} --prompts prompts.jsonl --out answers.jsonl",
        "```",
        "",
        "```python",
        "from colm_jax import CoLM",
        "",
        f"team = CoLM.from_pretrained({arguments})",
        "```",
    ]


def _licences(facts: Mapping[str, Any], stated: Stated) -> list[str]:
    """Return what is known of the terms of each part."""
    parts = "the gate" if facts.get("contents") == "gate" else "the base's weights and the gate"
    known = stated.license_name or stated.license
    if known and stated.license_link:
        known = f"[{known}]({stated.license_link})"
    lines = [f"- What is here, {parts}: {known or _UNKNOWN}."]
    models = [("Base", facts.get("provenance", {}).get("base", {}))]
    models += [(f"Expert {m + 1}", expert) for m, expert in enumerate(facts.get("experts", []))]
    for role, model in models:
        name = name_on_hub(model)
        lines.append(f"- {role}: {_UNKNOWN if name is None else _link(name.repository)}.")
    lines.append(f"- Training data: {_links(stated.datasets) or _UNKNOWN}.")
    return lines


def _links(datasets: Sequence[str]) -> str:
    return ", ".join(_link(f"datasets/{name}", name) for name in datasets)


def _link(path: str, name: str | None = None) -> str:
    return f"the terms of [{name or path}](https://huggingface.co/{path})"


def _row(role: str, model: Mapping[str, Any]) -> str:
    digest = str(model.get("sha256") or "")[:16]
    name = str(model.get("model", ""))
    if "://" in name and "#" in name:
        return f"| {role} | {name} | an endpoint | – |"
    known = model.get("revision") or ("not pinned" if name_on_hub(model) else "a local directory")
    return f"| {role} | {name if name_on_hub(model) else last_part(name)} | {known} | `{digest}` |"


def _number(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value
