"""The facts of models (`checkpoints.describe`) as terminal tables: properties of each, and whether they can pair."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.filesize import decimal

from colm_jax.report.contents import Table
from colm_jax.report.terminal import plain, show_table

_RANGES = 5  # ranges of ids that are shown

Facts = Mapping[str, Any]


def show_models(facts: Facts, console: Console) -> None:
    """Print the facts of models; on a mesh of several devices also how each parameter is sharded.

    Args:
      facts: of one model, as `describe` returns them, or {"models": [...]} with "pair", the facts of
        `describe_pair`, "endpoints", addresses with what they can do, and "gates", as `describe_gate` returns them.
      console: where to print.
    """
    models = facts.get("models", [facts])
    for endpoint in facts.get("endpoints", ()):
        console.print(plain(f"{endpoint['endpoint']}: {endpoint['abilities']}"), soft_wrap=True)
    if models:
        _show_table(models, console)
    if "pair" in facts:
        _show_pair(facts["pair"], console)
    for gate in facts.get("gates", ()):
        _show_gate(gate, console)


def _show_table(models: Sequence[Facts], console: Console) -> None:
    rows = [(name, *map(cell, models)) for name, cell in _ROWS.items()]
    rows += [(f"memory as {kind}", *(decimal(model["bytes"][kind]) for model in models)) for kind in models[0]["bytes"]]
    if any(model.get("quantised") for model in models):
        rows += [(name, *map(cell, models)) for name, cell in _QUANTISED_ROWS.items()]
    rows += [(name, *map(cell, models)) for name, cell in _MESH_ROWS.items()]
    show_table(Table("Models", ("", *(model["model"] for model in models)), tuple(rows)), console)
    for model in models:
        if max(model["mesh"].values()) > 1:
            parameters = tuple((name, *_sharding(**found)) for name, found in model["layout"].items())
            show_table(Table(f"Sharding of {model['model']}", ("parameter", "shape", "axes"), parameters), console)


def _show_pair(pair: Facts, console: Console) -> None:
    if not pair["can_pair"]:
        console.print(plain(f"These models cannot pair: {pair['why_not']}", "bold red"), soft_wrap=True)
        return
    if "why_spans" in pair:
        kinds = ", ".join(f"expert {m} is {_KINDS[kind]}" for m, kind in enumerate(pair["kinds"], start=1))
        console.print(plain(f"These models can pair, span by span: {kinds}", "bold green"), soft_wrap=True)
        console.print(plain(f"Not token by token: {pair['why_spans']}"), soft_wrap=True)
        return
    line = f"These models can pair: {pair['shared_vocabulary']:,} shared tokens, context {pair['context']:,} tokens"
    console.print(plain(line, "bold green"), soft_wrap=True)
    for model, ranges in pair["never_written"].items():
        if ranges:
            shown = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges[:_RANGES])
            more = f" and {len(ranges) - _RANGES} more ranges" if len(ranges) > _RANGES else ""
            count = sum(last - first + 1 for first, last in ranges)
            console.print(
                plain(f"{model}: {count:,} of its token ids are never generated: {shown}{more}"), soft_wrap=True
            )


def _show_gate(gate: Facts, console: Console) -> None:
    base, shape = gate["base"], gate["shape"] or {}
    rows = [
        ("kind", "gate without its base" if gate["format"] == "gate" else "gate of a team"),
        ("kernel", " × ".join(f"{shape[name]:,}" for name in ("width", "experts") if name in shape) or "–"),
        ("size on disk", "–" if gate["bytes_on_disk"] is None else decimal(gate["bytes_on_disk"])),
        ("base", base["name"] or "–"),
        ("sha256 of the base", base.get("sha256") or "–"),
        ("experts", ", ".join(expert["model"] for expert in gate["experts"]) or "–"),
        ("threshold", "–" if gate["threshold"] is None else f"{gate['threshold']:.4g}"),
    ]
    show_table(Table("Gate", ("", gate["gate"]), tuple(rows)), console)
    if gate.get("fits"):
        console.print(plain(f"The gate is one for {gate['model']}", "bold green"), soft_wrap=True)
    elif "fits" in gate:
        why = gate["why_not"] or f"whether the gate is one for {gate['model']} is not known: its weights are not here"
        console.print(plain(why, "bold red"), soft_wrap=True)


def _types(model: Facts) -> str:
    stored = model["stored_as"]
    if stored is None:
        return "weights are not downloaded"
    if len(stored) == 1:
        return next(iter(stored))
    counts = sorted(stored.items(), key=lambda item: -item[1])
    return ", ".join(f"{kind} ({n} tensor{'s' if n > 1 else ''})" for kind, n in counts)


def _vocabulary(model: Facts) -> str:
    size, rows = model["vocabulary"]["words"], model["vocabulary"]["rows"]
    return f"{size:,} tokens" + ("" if size == rows else f", {rows:,} rows in the LM head")


def _parameters(model: Facts) -> str:
    count, active = model["parameters"], model["active_parameters"]
    return f"{count:,}" if active == count else f"{count:,}, {active:,} of them active per token"


def _rope(model: Facts) -> str:
    rope = model["rope"]
    shown = f"{rope['rope_type']}, theta {rope['rope_theta']:,.10g}"
    if "factor" in rope:
        shown += f", factor {rope['factor']:g}"
    if "original_max_position_embeddings" in rope:
        shown += f", beyond {rope['original_max_position_embeddings']:,} tokens"
    if windowed := model["config"].get("window_rope"):
        shown += f"; theta {windowed['theta']:,.10g} in sliding-window layers"
    return shown


def _stays(model: Facts) -> bool:
    """Return whether any parameter stays quantised."""
    return model["quantised"] is not None and model["quantised"]["bytes"] < model["bytes"]["bfloat16"]


def _dequantised(model: Facts) -> str:
    if model["quantised"] is None:
        return "–"
    return ", ".join(model["quantised"]["dequantised"]) or "nothing" if _stays(model) else "everything"


def _windows(model: Facts) -> str:
    windows = model["config"].get("windows") or ()
    sizes = {size: windows.count(size) for size in windows if size is not None}
    return ", ".join(f"{size:,} tokens in {n} of {len(windows)} layers" for size, n in sizes.items()) or "none"


def _end_of_text(model: Facts) -> str:
    found = zip(model["vocabulary"]["end_of_text_tokens"], model["vocabulary"]["end_of_text"], strict=True)
    return ", ".join(f"{token} ({number})" for token, number in found) or "none"


def _experts(model: Facts) -> str:
    team = model.get("team") or {}
    return ", ".join(expert["model"] for expert in team.get("experts") or ()) or "–"


def _per_device(model: Facts) -> str:
    part = model["parameters_per_device"] / max(1, model["parameters"])
    return f"{model['parameters_per_device']:,} ({part:.0%})"


def _sharding(shape: list[int], split: list[list[str]]) -> tuple[str, str]:
    """Return a parameter's shape, and the mesh axes that shard each of its axes."""
    axes = [*split, *[[]] * (len(shape) - len(split))]
    return " × ".join(map(str, shape)), ", ".join("+".join(names) or "–" for names in axes)


_KINDS = {
    "guest": "a guest (its own tokenizer)",
    "remote": "remote (behind an API)",
    "resident": "resident",
}
_ROWS: dict[str, Callable[[Facts], str]] = {
    "kind": lambda model: model["format"],
    "experts": _experts,
    "family": lambda model: model["family"],
    "parameters": _parameters,
    "context": lambda model: f"{model['context']:,} tokens",
    "RoPE": _rope,
    "sliding window": _windows,
    "tokenizer": lambda model: model["tokenizer"],
    "vocabulary": _vocabulary,
    "end of text": _end_of_text,
    "chat template": lambda model: "yes" if model["chat_template"] else "no",
    "type on disk": _types,
    "size on disk": lambda model: "–" if model["bytes_on_disk"] is None else decimal(model["bytes_on_disk"]),
}
_QUANTISED_ROWS: dict[str, Callable[[Facts], str]] = {
    "memory as stored": lambda model: decimal(model["quantised"]["bytes"]) if _stays(model) else "–",
    "dequantised": _dequantised,
}
_MESH_ROWS: dict[str, Callable[[Facts], str]] = {
    "KV cache per token": lambda model: f"{decimal(model['cache_bytes_per_token']['bfloat16'])} (bfloat16)",
    "mesh": lambda model: " ".join(f"{axis}={size}" for axis, size in model["mesh"].items()),
    "parameters per device": _per_device,
}
