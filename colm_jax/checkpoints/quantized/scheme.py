"""How a checkpoint is quantised, by `quantization_config` of its config.json, and which tensors make a weight.

A weight that is stored as a plain tensor is not quantised; `modules_to_not_convert` and `ignore` must agree with that.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from colm_jax.checkpoints.quantized import fp8, int4, mxfp4
from colm_jax.checkpoints.quantized.packed import PackedOnDisk, Pieces
from colm_jax.checkpoints.reader import StoredTensor
from colm_jax.errors import UserError

_INSTEAD = "use the unquantised checkpoint (loading it in int8 or int4), or one in AWQ, GPTQ, FP8 or MXFP4"
# Methods that are not read, and why.
_REFUSED = {
    "bitsandbytes": "its blocks (NF4, FP4, LLM.int8() with outliers) have layouts that only its CUDA library defines",
    "hqq": "its tensors are pickled with their metadata in a layout of its own",
    "eetq": "its int8 weights lie in the order of one kind of GPU",
    "aqlm": "its codebooks are not scales of single codes",
    "quanto": "its layout depends on the version that wrote it",
    "torchao": "its tensors are PyTorch subclasses, in a layout that depends on the version that wrote it",
    "exl2": "each of its layers mixes several bit widths",
    "exl3": "its codes are trellises, not scales of single codes",
    "modelopt": "its NVFP4 and FP8 layouts are not implemented",
    "nvfp4": "its two levels of scales are not implemented",
    "bitnet": "its ternary weights are not implemented",
    "vptq": "its codebooks are not scales of single codes",
    "higgs": "its codebooks are not scales of single codes",
    "spqr": "its outliers are stored apart, in a sparse format",
    "quark": "its layouts are not implemented",
}
_ACTIVATIONS = ("input_scale", "output_scale", "activation_scale", "k_scale", "v_scale", "q_scale", "input_zero_point")
_COMPRESSED = ("float-quantized", "int-quantized", "naive-quantized", "pack-quantized")


@dataclass(frozen=True)
class Scheme:
    """How the weights of a checkpoint are quantised."""

    method: str  # for a reader of `colm inspect`
    needed: tuple[str, ...]  # ends of the names of a packed weight's tensors
    optional: tuple[str, ...]
    separator: str  # between a module's name and these
    kept_out: Callable[[str], bool]  # whether config.json says that a module is not quantised
    read: Callable[[str, Pieces], PackedOnDisk]

    def collect(self, tensors: Iterable[StoredTensor]) -> list[StoredTensor | PackedOnDisk]:
        """Return the weights of a checkpoint, plain and packed; the scales of activations are left out.

        Raises:
          UserError: a packed weight whose tensors are not all there, or do not fit each other or config.json.
        """
        ends, found = (*self.needed, *self.optional), list[StoredTensor | PackedOnDisk]()
        modules: dict[str, dict[str, StoredTensor]] = {}
        for tensor in tensors:
            module, _, end = tensor.name.rpartition(self.separator)
            if end in ends:
                others = modules.setdefault(module, {})
                if end in others:
                    raise UserError(
                        f"{tensor.file}: tensor {tensor.name!r} is also in {others[end].file.name}; remove one of them"
                    )
                others[end] = tensor
            elif tensor.name.rpartition(".")[2] not in _ACTIVATIONS:
                found.append(tensor)
        for module, pieces in modules.items():
            if set(pieces) == {"weight"} and not fp8.is_packed(pieces):
                found.append(pieces["weight"])
                continue
            self._check(module, pieces)
            found.append(self.read(module, pieces))
        return found

    def _check(self, module: str, pieces: dict[str, StoredTensor]) -> None:
        some = next(iter(pieces.values()))
        missing = [end for end in self.needed if end not in pieces]
        if missing:
            raise UserError(
                f"{some.file}: tensor {module + self.separator + missing[0]!r} is missing; {self.method} needs it "
                f"beside {some.name!r}"
            )
        if "weight" in self.needed and not fp8.is_packed(pieces):
            raise UserError(
                f"{some.file}: tensor {pieces['weight'].name!r} has type {pieces['weight'].dtype} but has scales; "
                f"expected 8 bits, as {self.method} stores it"
            )
        if self.kept_out(module):
            raise UserError(
                f"{some.file}: {module!r} is quantised ({some.name!r}), but config.json lists it among the modules "
                "that are not; the config belongs to another checkpoint"
            )


def read_scheme(config: dict[str, Any], source: str) -> Scheme | None:
    """Return how a checkpoint is quantised; None if it is not.

    Args:
      config: the content of config.json.
      source: its name, for errors.

    Raises:
      UserError: a method, format or value that is not supported, with what to use instead.
    """
    text = config.get("text_config")  # of a multimodal model
    settings = config.get("quantization_config") or (
        text.get("quantization_config") if isinstance(text, dict) else None
    )
    if settings in (None, {}):
        return None
    if not isinstance(settings, dict):
        raise UserError(f"{source}: field 'quantization_config' has a wrong type: {settings!r:.80}")
    fields = _Settings(settings, source)
    method = settings.get("quant_method")
    if method is None and (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        method = "bitsandbytes"
    if isinstance(method, str) and method.startswith("bitsandbytes"):
        method = "bitsandbytes"
    if isinstance(method, str) and method in _REFUSED:
        raise fields.error("quant_method", f"{_REFUSED[method]}; {_INSTEAD}")
    reader = _READERS.get(method) if isinstance(method, str) else None
    if reader is None:
        raise fields.error("quant_method", f"only {', '.join(_READERS)} are supported; {_INSTEAD}")
    return reader(fields)


class _Settings:
    """Typed access to `quantization_config`."""

    def __init__(self, values: dict[str, Any], source: str):
        self.values, self.source = values, source

    def error(self, key: str, reason: str) -> UserError:
        """Return an error about a value; the caller raises it."""
        return UserError(f"{self.source}: quantization_config has {key} {self.values.get(key)!r:.80}: {reason}")

    def number(self, key: str, default: int | None = None) -> int:
        """Return a whole number."""
        value = self.values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.error(key, "must be a whole number")
        return value

    def flag(self, key: str, default: bool | None = None) -> bool:
        """Return a boolean."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "must be true or false")
        return value

    def group_size(self, key: str = "group_size") -> int:
        """Return a number of inputs from 1, or -1 for all."""
        value = self.number(key)
        if value < 1 and value != -1:
            raise self.error(key, "must be a number of inputs, or -1 for all of them")
        return value

    def block(self, key: str) -> tuple[int, int] | None:
        """Return numbers of outputs and inputs from 1; None for null."""
        value = self.values.get(key)
        if value is None:
            return None
        whole = isinstance(value, list) and len(value) == 2 and all(type(v) is int and v >= 1 for v in value)
        if not whole:
            raise self.error(key, "must be two whole numbers from 1")
        return value[0], value[1]

    def names(self, *keys: str) -> list[str]:
        """Return the list of names under the first of `keys` that is set."""
        key = next((key for key in keys if self.values.get(key) is not None), keys[0])
        value = self.values.get(key) or []
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise self.error(key, "must be a list of names")
        return value

    def kept_out(self) -> Callable[[str], bool]:
        """Return whether a module is in `modules_to_not_convert`, as transformers reads that list."""
        patterns = self.names("modules_to_not_convert", "ignored_layers")
        try:
            starts = [re.compile(rf"(?:{name})(?:(?<=\.)|(?=\.|$))") for name in patterns]
        except re.error as error:
            raise self.error("modules_to_not_convert", f"not a regular expression: {error}") from None
        return lambda module: any(p.match(module) for p in starts) or module.endswith(tuple(patterns))


def _awq(settings: _Settings) -> Scheme:
    version = settings.values.get("version") or settings.values.get("format") or "gemm"
    if str(version).lower() != "gemm":
        raise settings.error("version", "only 'gemm' is supported; repack it with AutoAWQ, or use another checkpoint")
    if settings.number("bits", settings.values.get("w_bit")) != 4:
        raise settings.error("bits", "AWQ is read in 4 bits only")
    if not settings.flag("zero_point", True):
        raise settings.error("zero_point", "AWQ without zero points is not supported")
    size = settings.group_size("group_size" if "group_size" in settings.values else "q_group_size")

    def read(module: str, pieces: Pieces) -> PackedOnDisk:
        return int4.awq(module, pieces, size)

    return Scheme("AWQ", ("qweight", "qzeros", "scales"), ("weight",), ".", settings.kept_out(), _no_weight(read))


def _gptq(settings: _Settings) -> Scheme:
    bits, size = settings.number("bits"), settings.group_size()
    if bits not in (4, 8):
        raise settings.error("bits", f"GPTQ is read in 4 and 8 bits only; {_INSTEAD}")
    layout = settings.values.get("checkpoint_format") or settings.values.get("format") or "gptq"
    if layout not in ("gptq", "gptq_v2"):
        raise settings.error("checkpoint_format", "only 'gptq' and 'gptq_v2' are supported; save it in one of them")
    if settings.values.get("dynamic"):
        raise settings.error("dynamic", f"modules of several bits or group sizes are not supported; {_INSTEAD}")
    act_order = settings.flag("desc_act", False)
    ends = ("qweight", "qzeros", "scales"), ("g_idx",)
    needed, optional = ((*ends[0], *ends[1]), ()) if act_order else ends

    def read(module: str, pieces: Pieces) -> PackedOnDisk:
        return int4.gptq(module, pieces, bits, size, less_one=layout == "gptq", ordered=act_order)

    return Scheme("GPTQ", needed, (*optional, "weight"), ".", settings.kept_out(), _no_weight(read))


def _no_weight(read: Callable[[str, Pieces], PackedOnDisk]) -> Callable[[str, Pieces], PackedOnDisk]:
    """Return a reader that refuses a plain weight beside a packed one."""

    def checked(module: str, pieces: Pieces) -> PackedOnDisk:
        if "weight" in pieces:
            other = next(name for name in pieces if name != "weight")
            raise UserError(
                f"{pieces['weight'].file}: {pieces['weight'].name!r} is stored twice, also as {pieces[other].name!r}; "
                "remove one of them"
            )
        return read(module, pieces)

    return checked


def _fp8(settings: _Settings) -> Scheme:
    """DeepSeek's and transformers' block-wise FP8, and AutoFP8's per tensor."""
    block = settings.block("weight_block_size")
    if settings.values.get("expert_dtype") not in (None, "fp8"):
        raise settings.error("expert_dtype", f"only 'fp8' is supported; {_INSTEAD}")
    strategy = "tensor" if block is None else "block"

    def read(module: str, pieces: Pieces) -> PackedOnDisk:
        names = [name for name in ("weight_scale_inv", "weight_scale") if name in pieces]
        if len(names) != 1:
            text = "is missing" if not names else "and 'weight_scale' are both stored; remove one"
            raise UserError(f"{pieces['weight'].file}: tensor {module + '.weight_scale_inv'!r} {text}")
        kept = {name: pieces[name] for name in ("weight", *names)}
        return fp8.weight(module, kept, names[0], strategy, block or (1, 1))

    scales = ("weight_scale_inv", "weight_scale")
    return Scheme("FP8", ("weight",), scales, ".", settings.kept_out(), read)


def _fbgemm(settings: _Settings) -> Scheme:
    def read(module: str, pieces: Pieces) -> PackedOnDisk:
        return fp8.weight(module, pieces, "weight_scale", "channel", (1, 1))

    return Scheme("FBGEMM FP8", ("weight", "weight_scale"), (), ".", settings.kept_out(), read)


def _mxfp4(settings: _Settings) -> Scheme:
    return Scheme("MXFP4", ("blocks", "scales"), (), "_", settings.kept_out(), mxfp4.weight)


def _compressed_tensors(settings: _Settings) -> Scheme:
    groups = settings.values.get("config_groups")
    if not isinstance(groups, dict) or not groups or not all(isinstance(group, dict) for group in groups.values()):
        raise settings.error("config_groups", "must describe at least one group of weights")
    sparse = settings.values.get("sparsity_config") or {}
    if not isinstance(sparse, dict) or sparse.get("format") not in (None, "dense"):
        raise settings.error("sparsity_config", f"sparse weights are not supported; {_INSTEAD}")
    weights = [group.get("weights") for group in groups.values()]
    facts = [_Settings(each, settings.source) for each in weights if isinstance(each, dict)]
    if len(facts) != len(weights) or any(_of_weights(fact) != _of_weights(facts[0]) for fact in facts):
        raise settings.error("config_groups", f"groups that differ in their weights are not supported; {_INSTEAD}")
    formats = [group.get("format") or settings.values.get("format") for group in groups.values()]
    form = formats[0]
    if form not in _COMPRESSED or any(other != form for other in formats):
        raise settings.error("format", f"only {', '.join(_COMPRESSED)} are supported; {_INSTEAD}")
    bits, kind, strategy, size, block, symmetric, ordered = _of_weights(facts[0])
    kept_out = _ignored(settings)
    if form == "pack-quantized":
        if bits not in (4, 8) or kind != "int":
            raise facts[0].error("num_bits", f"pack-quantized is read in integers of 4 and 8 bits only; {_INSTEAD}")
        if strategy not in ("group", "channel", "tensor"):
            raise facts[0].error("strategy", "must be 'group', 'channel' or 'tensor' in pack-quantized")
        needed: tuple[str, ...] = ("weight_packed", "weight_scale", "weight_shape")
        needed += () if symmetric else ("weight_zero_point",)
        needed += ("weight_g_idx",) if ordered else ()
        optional = tuple({"weight_g_idx", "weight"} - set(needed))

        def unpack(module: str, pieces: Pieces) -> PackedOnDisk:
            one = strategy == "tensor"
            return int4.pack_quantized(module, pieces, bits, size, symmetric=symmetric, one=one, ordered=ordered)

        return Scheme(f"compressed-tensors {form}", needed, optional, ".", kept_out, _no_weight(unpack))
    if bits != 8 or not symmetric:
        raise settings.error("config_groups", f"{form} is read in 8 bits without zero points only; {_INSTEAD}")

    def read(module: str, pieces: Pieces) -> PackedOnDisk:
        return fp8.weight(module, pieces, "weight_scale", strategy, block or (1, size or 1))

    return Scheme(f"compressed-tensors {form}", ("weight", "weight_scale"), (), ".", kept_out, read)


def _of_weights(
    facts: _Settings,
) -> tuple[int, str, str, int | None, tuple[int, int] | None, bool, bool]:
    """Return bits, type, strategy, group size, block, symmetry and act-order of the weights of a group."""
    size = None if facts.values.get("group_size") is None else facts.group_size()
    size = None if size == -1 else size
    strategy = facts.values.get("strategy") or ("channel" if facts.values.get("group_size") == -1 else None)
    strategy = strategy or ("tensor" if size is None else "group")
    block = facts.block("block_structure")
    if strategy not in ("tensor", "channel", "group", "block"):
        raise facts.error("strategy", "must be 'tensor', 'channel', 'group' or 'block'")
    if (strategy == "group") != (size is not None) or (strategy == "block") != (block is not None):
        raise facts.error("strategy", "needs its own of 'group_size' and 'block_structure', and not the other")
    ordered = str(facts.values.get("actorder")).lower() in ("group", "dynamic", "true")
    kind = str(facts.values.get("type", "int"))
    return facts.number("num_bits", 8), kind, strategy, size, block, facts.flag("symmetric", True), ordered


def _ignored(settings: _Settings) -> Callable[[str], bool]:
    """Return whether a module is in compressed-tensors' `ignore`: its name, or `re:` and a regular expression."""
    names = settings.names("ignore")
    try:
        patterns = [re.compile(name.removeprefix("re:")) for name in names if name.startswith("re:")]
    except re.error as error:
        raise settings.error("ignore", f"not a regular expression: {error}") from None
    return lambda module: module in names or any(pattern.match(module) for pattern in patterns)


_READERS: dict[str, Callable[[_Settings], Scheme]] = {
    "awq": _awq,
    "gptq": _gptq,
    "fp8": _fp8,
    "fbgemm_fp8": _fbgemm,
    "compressed-tensors": _compressed_tensors,
    "mxfp4": _mxfp4,
}
