"""Count the bytes that a compiled program moves to and from a chip's memory (HBM), from its optimised text.

The compiler's own figure, `cost_analysis()["bytes accessed"]`, also counts on-chip memory (VMEM). Here an operand or a
result counts if its layout names no other memory space, as `S(1)` is VMEM's:

- Each instruction reads its operands and writes its results. An asynchronous copy counts where it starts.
- Slices and gathers read what they return; an update in place writes the updated part. That holds within a fusion too.
- A loop's body counts as often as it runs, where the loop's condition compares its counter with a constant, or the
  compiler notes the count; otherwise once. Of a conditional's branches the one that moves most counts.
- A kernel (custom call) reads each operand and writes each result once; if it reads blocks several times, that is not
  seen. Sizes are without the padding of tiles.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_NAME = re.compile(r"%([\w.\-]+)")
_COUNT = re.compile(r'known_trip_count"?:\{"n":"(\d+)"')
# Instructions that move nothing: other names of arrays, and constants, which are small.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast after-all opt-barrier partition-id replica-id".split()
)
_SEMAPHORES = 2  # a memory space
_SLICES = ("dynamic-slice", "slice", "gather")


@dataclass(frozen=True)
class _Leaf:
    """An array of an instruction's result."""

    size: int  # bytes
    space: int  # memory space

    @property
    def in_hbm(self) -> bool:
        """Whether it is in the chip's memory."""
        return self.space == 0


@dataclass(frozen=True)
class _Instruction:
    name: str
    leaves: tuple[_Leaf, ...]
    operation: str
    operands: tuple[str, ...]
    given: str  # the text between the operation's parentheses
    attributes: str  # and after them
    is_root: bool


@dataclass(frozen=True)
class _Computation:
    instructions: dict[str, _Instruction]

    @property
    def root(self) -> _Instruction:
        return next(each for each in self.instructions.values() if each.is_root)

    def parameter(self, number: int) -> _Instruction:
        """Return the parameter of this number."""
        return next(
            each for each in self.instructions.values() if each.operation == "parameter" and int(each.given) == number
        )

    def readers(self, name: str) -> list[_Instruction]:
        """Return the instructions that have this one as an operand."""
        return [each for each in self.instructions.values() if name in each.operands]

    def behind(self, instruction: _Instruction) -> _Instruction:
        """Return the instruction whose array this one renames."""
        while instruction.operation == "bitcast":
            instruction = self.instructions[instruction.operands[0]]
        return instruction


def hbm_bytes(text: str) -> int:
    """Return the bytes that one run of a compiled program reads from and writes to HBM, on one chip.

    Args:
      text: of the optimised program, `jax.stages.Compiled.as_text()`.
    """
    return _Program(text).total


class _Program:
    def __init__(self, text: str):
        self.computations: dict[str, _Computation] = {}
        entry, lines = "", list[str]()
        for line in text.splitlines():
            start = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
            if start and not line[0].isspace():
                lines = []
                entry = start[2] if start[1] else entry
                name = start[2]
            elif line.startswith("}"):
                found = (_instruction(each) for each in lines)
                self.computations[name] = _Computation({each.name: each for each in found if each is not None})
            else:
                lines.append(line)
        self._moved = cache(self._count)
        self.total = self._moved(entry)

    def _count(self, name: str) -> int:
        computation = self.computations[name]
        return sum(self._instruction(computation, each) for each in computation.instructions.values())

    def _instruction(self, computation: _Computation, each: _Instruction) -> int:
        operation = each.operation
        if operation in _FREE or operation.endswith("-done") or '"AllocateBuffer"' in each.attributes:
            return 0
        if operation == "while":
            condition, body = _called(each, "condition"), _called(each, "body")
            return self._trips(each, condition[0]) * (self._moved(condition[0]) + self._moved(body[0]))
        if operation == "conditional":
            named = ("branch_computations", "true_computation", "false_computation")
            return max(self._moved(branch) for attribute in named for branch in _called(each, attribute))
        if operation in ("call", "async-start"):
            return sum(map(self._moved, _called(each, "to_apply") + _called(each, "calls")))
        operands = [computation.instructions[operand] for operand in dict.fromkeys(each.operands)]
        if operation == "fusion":
            (fused,) = _called(each, "calls")
            reads = sum(
                self._read(fused, each.operands.index(operand.name)) for operand in operands if _all_in_hbm(operand)
            )
            return reads + sum(
                size for size, leaf in zip(self._written(fused), each.leaves, strict=True) if leaf.in_hbm
            )
        results = each.leaves
        if operation == "copy-start":  # (destination, source, context)
            results = results[:1]
        elif operation.endswith("-start"):  # (operands, destinations, contexts)
            results = results[sum(len(operand.leaves) for operand in operands) :]
            results = tuple(leaf for leaf in results if leaf.space != _SEMAPHORES)
        if operation.removesuffix("-start") in _SLICES:
            read = sum(leaf.size for leaf in results) if _all_in_hbm(operands[0]) else 0
            return read + _in_hbm(results) + sum(_in_hbm(operand.leaves) for operand in operands[1:])
        if operation == "dynamic-update-slice":
            update = computation.instructions[each.operands[1]]
            return _in_hbm(update.leaves) + (_size(update.leaves) if _all_in_hbm(each) else 0)
        return _in_hbm(results) + sum(_in_hbm(operand.leaves) for operand in operands)

    def _trips(self, loop: _Instruction, condition: str) -> int:
        """Return how often a loop's body runs; 1 if that is not in the text."""
        noted = _COUNT.search(loop.attributes)
        if noted:
            return int(noted[1])
        computation = self.computations[condition]
        root = computation.root
        if root.operation == "compare" and "direction=LT" in root.attributes:
            counter, limit = (computation.instructions[operand] for operand in root.operands)
            if limit.operation == "constant" and counter.operation == "get-tuple-element":
                return int(limit.given)
        return 1

    def _read(self, fused: str, number: int) -> int:
        """Return the bytes that a fusion reads of its operand of this number."""
        computation = self.computations[fused]
        parameter = computation.parameter(number)
        return min(_size(parameter.leaves), self._read_by_readers(computation, parameter))

    def _read_by_readers(self, computation: _Computation, value: _Instruction) -> int:
        total = _size(value.leaves) if value.is_root else 0  # passed on whole, to where a nested fusion is used
        for reader in computation.readers(value.name):
            places = [i for i, operand in enumerate(reader.operands) if operand == value.name]
            if reader.operation == "bitcast":
                total += self._read_by_readers(computation, reader)
            elif reader.operation in _SLICES and places == [0]:
                total += _size(reader.leaves)
            elif reader.operation == "dynamic-update-slice" and places == [0]:
                continue
            elif reader.operation == "fusion":
                total += sum(self._read(_called(reader, "calls")[0], place) for place in places)
            else:
                total += _size(value.leaves)
        return total

    def _written(self, fused: str) -> list[int]:
        """Return the bytes that a fusion writes of each of its results."""
        computation = self.computations[fused]
        root = computation.behind(computation.root)
        if root.operation == "tuple":
            return [size for operand in root.operands for size in self._updated(computation, operand)]
        return self._updated(computation, root.name)

    def _updated(self, computation: _Computation, name: str) -> list[int]:
        value = computation.behind(computation.instructions[name])
        if value.operation == "dynamic-update-slice":
            return [_size(computation.instructions[value.operands[1]].leaves)]
        if value.operation == "fusion":
            return self._written(_called(value, "calls")[0])
        return [leaf.size for leaf in value.leaves]


def _instruction(line: str) -> _Instruction | None:
    found = re.match(r"\s+(ROOT )?%?([\w.\-]+) = (.*)", line)
    if found is None:
        return None
    kind, rest = _balanced(found[3]) if found[3].startswith("(") else found[3].split(" ", 1)
    operation, rest = rest.strip().split("(", 1)
    given, attributes = _balanced("(" + rest)
    leaves = tuple(_leaf(*array) for array in _ARRAY.findall(kind))
    operands = () if operation in ("parameter", "constant") else tuple(_NAME.findall(given))
    return _Instruction(found[2], leaves, operation, operands, given[1:-1], attributes, bool(found[1]))


def _balanced(text: str) -> tuple[str, str]:
    """Split a text that starts with a parenthesis after the one that closes it."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[: place + 1], text[place + 1 :]
    raise ValueError(f"unbalanced parentheses: {text[:80]}")


def _leaf(kind: str, sizes: str, layout: str) -> _Leaf:
    digits = re.search(r"\d+", kind)
    bits = 0 if kind == "token" else 8 if digits is None else int(digits[0])
    count = math.prod(int(size) for size in sizes.split(",") if size)
    space = _SPACE.search(layout)
    return _Leaf(count * bits // 8, 0 if space is None else int(space[1]))


def _called(instruction: _Instruction, attribute: str) -> list[str]:
    """Return the computations that an attribute of an instruction names."""
    found = re.search(rf"[ ,]{attribute}=(\{{[^}}]*\}}|%?[\w.\-]+)", instruction.attributes)
    return [] if found is None else re.findall(r"%?([\w.\-]+)", found[1])


def _size(leaves: Iterable[_Leaf]) -> int:
    return sum(leaf.size for leaf in leaves)


def _in_hbm(leaves: Iterable[_Leaf]) -> int:
    return sum(leaf.size for leaf in leaves if leaf.in_hbm)


def _all_in_hbm(instruction: _Instruction) -> bool:
    return all(leaf.in_hbm for leaf in instruction.leaves)
