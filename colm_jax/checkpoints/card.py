"""The model card (README.md) of a team directory: its models, training data and calibration."""

import json
from pathlib import Path
from typing import Any

_USE = """```bash
colm generate --base . --prompts prompts.jsonl --out answers.jsonl
```

```python
from colm_jax import CoLM

team = CoLM.from_pretrained(base=".")
```"""


def model_card(facts: dict[str, Any]) -> str:
    """Return the model card of a team, from its colm.json. Licences are left for the owner to fill in."""
    provenance, experts = facts.get("provenance", {}), facts.get("experts", [])
    base = provenance.get("base", {})
    lines = ["---", "license: # to be filled in: base, experts and data each have their own terms"]
    if base.get("revision"):  # a local path means nothing on another machine
        lines.append(f"base_model: {json.dumps(base['model'])}")
    lines += ["tags: [co-llm]", "---", "", "# A Co-LLM team", ""]
    spans = facts.get("spans") == "text"
    unit = "span" if spans else "token"
    lines += [
        f"The weights here are the base's, an ordinary checkpoint of its family. `gate.safetensors` decides, {unit} by",
        f"{unit}, when an expert writes instead; `colm.json` names the experts and the threshold. The experts' weights",
        "are not in this directory.",
        "",
        "| model | name | revision | sha256 |",
        "| --- | --- | --- | --- |",
        _row("base", base),
        *(_row(f"expert {m + 1}", expert) for m, expert in enumerate(experts)),
        "",
        "## Training",
        "",
    ]
    for split, file in provenance.get("data", {}).items():
        lines.append(f"- {split}: `{file['file']}`, sha256 `{file['sha256'][:16]}`")
    lines += [f"- {name}: {value}" for name, value in provenance.get("training", {}).items()]
    vocabulary = facts.get("shared_vocabulary")
    if vocabulary and not spans:
        lines.append(f"- shared vocabulary: {vocabulary['words']} tokens; no other token is ever written")
    lines += ["", "## Calibration", ""]
    if facts.get("threshold") is None:
        lines.append("None: pass a threshold, or run `colm calibrate`.")
    else:
        found = facts.get("calibration", {})
        shown = {"threshold": facts["threshold"], **{k: found.get(k) for k in ("metric", "score", "deferral_rate")}}
        lines += [f"- {name.replace('_', ' ')}: {_number(value)}" for name, value in shown.items() if value is not None]
    lines += ["", "## Use", "", _USE, "", "## Licences", ""]
    lines += ["Of the base: to be filled in. Of the experts: to be filled in. Of the data: to be filled in.", ""]
    return "\n".join(lines)


def _row(role: str, model: dict[str, Any]) -> str:
    digest = str(model.get("sha256") or "")[:16]
    name = model.get("model", "")
    if "://" in name and "#" in name:
        return f"| {role} | {name} | an endpoint | – |"
    name = name if model.get("revision") else Path(name).name
    return f"| {role} | {name} | {model.get('revision') or 'a local directory'} | `{digest}` |"


def _number(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value
