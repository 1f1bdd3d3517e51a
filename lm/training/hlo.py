"""Reads the text of a compiled or partitioned XLA program: its collectives, matrix products and custom calls.

XLA's own `cost_analysis` counts the body of a loop once and knows no collectives, so this multiplies by trip counts.
Sizes are those of one device, since a partitioned program is that of one device.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_ARRAY = re.compile(r"(\w+)\[([\d,<=]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array, or one element of a tuple.

    Attributes:
      dtype: as XLA names it, such as "bf16".
      dims: its sizes on one device.
    """

    dtype: str
    dims: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size; that of a token or of an opaque value is 0."""
        if self.dtype == "pred":
            return math.prod(self.dims)
        bits = re.search(r"\d+", self.dtype)  # bf16, s4, f8e4m3fn
        return math.ceil(math.prod(self.dims) * int(bits[0]) / 8) if bits else 0


@dataclasses.dataclass(frozen=True)
class Collective:
    """Communication of one array, however often one step repeats it.

    Attributes:
      kind: one of `COLLECTIVES`.
      dtype: of the array.
      shape: of the larger of what goes in and what comes out, on one device.
      bytes: of that array, once.
      count: how often one step does it.
      group: how many devices take part in it.
      sliced: an all-reduce of which each device uses a slice only. The compilers for TPU and GPU make it a
        reduce-scatter.
    """

    kind: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    count: int
    group: int
    sliced: bool = False

    @property
    def sent(self) -> float:
        """Bytes that each device sends over the network in one step, by the ring algorithm (Patarasuk and Yuan 2009).

        An all-reduce is a reduce-scatter and an all-gather, each of which sends (group - 1) / group of the array.
        """
        rounds = 2 if self.kind == "all-reduce" and not self.sliced else 1
        share = 1.0 if self.kind == "collective-permute" else (self.group - 1) / self.group
        return rounds * share * self.bytes * self.count


@dataclasses.dataclass(frozen=True)
class Dot:
    """A matrix product.

    Attributes:
      dtype: of the result.
      shape: of the result, on one device.
      contracted: length of the sums.
      count: how often one step does it.
      operand_bytes: of both operands, once.
      batched: whether it is many independent products, as in attention.
    """

    dtype: str
    shape: tuple[int, ...]
    contracted: int
    count: int
    operand_bytes: int
    batched: bool = False

    @property
    def flops(self) -> int:
        """Floating-point operations of one step on one device: a multiplication and an addition for each term."""
        return 2 * math.prod(self.shape) * self.contracted * self.count

    @property
    def bytes(self) -> int:
        """Operands read and results written in one step, if each is moved once."""
        return (self.operand_bytes + Shape(self.dtype, self.shape).bytes) * self.count


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it calls, without the condition of a loop."""
        if self.opcode.endswith(("-done", "-update")):
            return ()  # what was started is counted where it starts
        names = _CALLED.findall(self.attributes)
        if match := _BRANCHES.search(self.attributes):
            names += [name.strip().lstrip("%") for name in match[1].split(",")]
        return tuple(names)


Computation = Mapping[str, Instruction]


class Program:
    """A program's computations, and what one run of it executes."""

    def __init__(self, text: str):
        """Reads the text of an HLO module, as from `compiled.as_text()`.

        Raises:
          ValueError: if it has no entry computation.
        """
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        match = re.search(r"\bnum_partitions=(\d+)", text)
        self.num_partitions = int(match[1]) if match else 1
        for is_entry, name, lines in _computations(text):
            self.computations[name] = {each.name: each for each in map(_instruction, lines) if each}
            self.entry = name if is_entry else self.entry
        if not self.entry:
            raise ValueError("this is not the text of an HLO module: it has no ENTRY")
        self.unknown_loops: set[str] = set()

    def executed(self) -> Iterator[tuple[Computation, Instruction, int]]:
        """Every instruction, with the computation it is in and how often one run executes it.

        Every branch of a conditional counts. The body of a loop counts once where its trip count cannot be read;
        `unknown_loops` then has the loop's name.
        """
        yield from self._executed(self.entry, 1)

    def _executed(self, name: str, times: int) -> Iterator[tuple[Computation, Instruction, int]]:
        computation = self.computations.get(name, {})
        for instruction in computation.values():
            yield computation, instruction, times
            inner = times
            if instruction.opcode == "while":
                inner *= self._trips(computation, instruction)
            for called in instruction.called:
                yield from self._executed(called, inner)

    def _trips(self, computation: Computation, loop: Instruction) -> int:
        if match := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(match[1])
        trips = self._counted_trips(computation, loop)
        if trips is None:
            self.unknown_loops.add(loop.name)
        return 1 if trips is None else trips

    def _counted_trips(self, computation: Computation, loop: Instruction) -> int | None:
        """The trips of a loop `for i in range(start, stop)`, whose condition compares a counter with a constant."""
        match = re.search(r"\bcondition=%?([\w.-]+)", loop.attributes)
        condition = self.computations.get(match[1], {}) if match else {}
        compared = [each for each in condition.values() if each.opcode == "compare"]
        if len(compared) != 1 or "direction=LT" not in compared[0].attributes:
            return None
        counter, stop = (condition.get(name) for name in compared[0].operands)
        start = _start(computation, loop, counter)
        stops = _constant(stop)
        return None if start is None or stops is None else max(stops - start, 0)

    def collectives(self) -> list[Collective]:
        """The communication of one step, the most bytes first; equal ones are one entry."""
        counts: Counter[Collective] = Counter()
        for computation, instruction, times in self.executed():
            for each in _collectives_of(computation, instruction, self.num_partitions):
                counts[each] += times
        found = [dataclasses.replace(each, count=count) for each, count in counts.items()]
        return sorted(found, key=lambda each: (-each.bytes * each.count, each.kind, each.shape))

    def dots(self) -> list[Dot]:
        """The matrix products of one step, the most operations first; equal ones are one entry."""
        counts: Counter[Dot] = Counter()
        for computation, instruction, times in self.executed():
            if instruction.opcode == "dot":
                counts[_dot(computation, instruction)] += times
        found = [dataclasses.replace(each, count=count) for each, count in counts.items()]
        return sorted(found, key=lambda each: (-each.flops, each.shape))

    def custom_calls(self) -> dict[str, int]:
        """How often one step calls each kernel that XLA did not write itself, by the name of its target."""
        counts: Counter[str] = Counter()
        for _, instruction, times in self.executed():
            match = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
            if instruction.opcode == "custom-call" and match:
                counts[match[1]] += times
        return dict(counts)

    def held(self) -> int:
        """Bytes that a device holds at once beside the program's arguments, by what loops carry.

        In the innermost place where it is largest: all that the loops around it carry, and the largest result of a
        matrix product or collective. An estimate, because it leaves out what lives beside a loop without passing
        through it, and because a compiler may keep a result in another form.
        """
        return self._held(self.entry)

    def _held(self, name: str) -> int:
        computation = self.computations.get(name, {})
        most = 0
        for each in computation.values():
            if each.opcode == "while":
                most = max(most, self._carried(computation, each) + max(map(self._held, each.called), default=0))
            elif each.called and each.opcode in ("call", "conditional", "fusion"):
                most = max(most, *map(self._held, each.called))
            elif each.opcode == "dot" or each.opcode in COLLECTIVES:
                most = max(most, sum(shape.bytes for shape in each.shapes))
        return most

    def _carried(self, computation: Computation, loop: Instruction) -> int:
        """Bytes that a loop carries and that the computation around it didn't get as arguments."""
        initial = computation.get(loop.operands[0])
        names = initial.operands if initial is not None and initial.opcode == "tuple" else ()
        unchanged = _unchanged(self.computations.get(loop.called[0], {}))
        stored = {
            name: computation[name]
            for index, name in enumerate(names)
            # A constant that no trip changes is written anew where it is used.
            if not (index in unchanged and computation[name].opcode in ("broadcast", "constant", "iota"))
        }
        return sum(
            shape.bytes for value in stored.values() if not _is_argument(computation, value) for shape in value.shapes
        )


def collectives(hlo_text: str) -> list[Collective]:
    """The communication of one step of a program; see `Program.collectives`."""
    return Program(hlo_text).collectives()


def dots(hlo_text: str) -> list[Dot]:
    """The matrix products of one step of a program; see `Program.dots`."""
    return Program(hlo_text).dots()


def _computations(text: str) -> Iterator[tuple[bool, str, list[str]]]:
    """Whether it is the entry, name and lines of each computation."""
    text = re.sub(r"/\*.*?\*/", "", text)
    for match in re.finditer(r"^(ENTRY )?%?([\w.-]+) (?:\(.*\) -> .*)?\{\n((?: .*\n)*)\}", text, re.MULTILINE):
        yield bool(match[1]), match[2], match[3].splitlines()


def _instruction(line: str) -> Instruction | None:
    match = re.match(r"\s+(ROOT )?%?([\w.-]+) = ", line)
    if not match:
        return None
    kind, rest = _split_type(line[match.end() :])
    opcode, _, rest = rest.partition("(")
    operands, attributes = _split_parenthesis(rest)
    # An operand is written with or without its type before its name; the value of a constant is kept as it is.
    names = re.findall(r"%([\w.-]+)", operands) or [each.strip() for each in operands.split(",") if each.strip()]
    return Instruction(match[2], _shapes(kind), opcode.strip(), tuple(names), attributes, bool(match[1]))


def _split_type(text: str) -> tuple[str, str]:
    if not text.startswith("("):
        kind, _, rest = text.partition(" ")
        return kind, rest
    kind, rest = _split_parenthesis(text[1:])
    return kind, rest.lstrip()


def _split_parenthesis(text: str) -> tuple[str, str]:
    """What comes before and after the parenthesis that closes the one just opened."""
    depth = 1
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return text[: match.start()], text[match.end() :]
    return text, ""


def _shapes(kind: str) -> tuple[Shape, ...]:
    """The arrays of a type; of a tuple in a tuple, its elements."""
    return tuple(
        Shape(dtype, tuple(int(size.removeprefix("<=")) for size in sizes.split(",") if size))
        for dtype, sizes in _ARRAY.findall(kind)
    )


def _constant(instruction: Instruction | None) -> int | None:
    if instruction is None or instruction.opcode != "constant":
        return None
    value = instruction.operands[0] if instruction.operands else ""
    return int(value) if re.fullmatch(r"-?\d+", value) else None


def _start(computation: Computation, loop: Instruction, counter: Instruction | None) -> int | None:
    """The value with which a loop's counter begins."""
    index = re.search(r"\bindex=(\d+)", counter.attributes) if counter else None
    initial = computation.get(loop.operands[0])
    if not index or initial is None or initial.opcode != "tuple":
        return None
    value = computation.get(initial.operands[int(index[1])])
    while value is not None and value.opcode in ("copy", "bitcast"):
        value = computation.get(value.operands[0])
    return _constant(value)


def _unchanged(body: Computation) -> set[int]:
    """Which elements of the tuple that a loop carries its body hands on as they are."""
    root = next((each for each in body.values() if each.is_root), None)
    found = set()
    for index, name in enumerate(root.operands if root is not None and root.opcode == "tuple" else ()):
        value = body[name]
        if value.opcode == "get-tuple-element" and re.search(rf"\bindex={index}\b", value.attributes):
            found.add(index)
    return found


def _is_argument(computation: Computation, value: Instruction) -> bool:
    if value.opcode == "get-tuple-element":
        value = computation[value.operands[0]]
    return value.opcode == "parameter"


def _collectives_of(computation: Computation, instruction: Instruction, partitions: int) -> Iterator[Collective]:
    """An entry for each array that an instruction communicates; none if it isn't a collective."""
    kind = instruction.opcode.removesuffix("-start")
    if kind not in COLLECTIVES:
        return
    inputs = [shape for name in instruction.operands if name in computation for shape in computation[name].shapes]
    outputs = instruction.shapes
    if instruction.opcode.endswith("-start") and kind in ("all-gather", "collective-permute"):
        outputs = outputs[len(inputs) : 2 * len(inputs)]  # after the inputs, before context
    group = _group_size(kind, instruction.attributes, partitions)
    sliced = kind == "all-reduce" and _is_sliced(computation, instruction)
    for given, made in zip(inputs or outputs, outputs, strict=False):
        larger = max(given, made, key=lambda shape: shape.bytes)
        yield Collective(kind, larger.dtype, larger.dims, larger.bytes, 0, group, sliced)


def _is_sliced(computation: Computation, instruction: Instruction) -> bool:
    users = [each for each in computation.values() if instruction.name in each.operands]
    return bool(users) and all(each.opcode == "dynamic-slice" for each in users)


def _group_size(kind: str, attributes: str, partitions: int) -> int:
    """How many devices communicate with each other.

    Groups are written as lists, `{{0,1},{2,3}}`, as a reshaped range, `[2,2]<=[4]` (groups, then their size), or as
    axes of a mesh, `mesh['a'=2,'b'=2] {'b'}`. No groups mean one of all devices.

    Raises:
      ValueError: for another way.
    """
    if kind == "collective-permute":
        return 2
    groups = attributes.partition("replica_groups=")[2]
    if match := re.match(r"\{\{([\d,]+)\}", groups):
        return match[1].count(",") + 1
    if match := re.match(r"\[\d+,(\d+)\]", groups):
        return int(match[1])
    if match := re.match(r"\w+\[([^]]*)\][^{]*\{([^}]*)\}", groups):
        return _axes_size(match[1], match[2])
    if groups and not groups.startswith("{}"):
        raise ValueError(f"cannot read replica_groups={groups[:80]}")
    return partitions


def _axes_size(mesh: str, axes: str) -> int:
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    # A part of an axis is written as 'axis':(size of the parts before it)size.
    parts = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", axes)
    return math.prod(int(part) if part else sizes[name] for name, part in parts)


def _dot(computation: Computation, instruction: Instruction) -> Dot:
    (result,) = instruction.shapes
    left, right = (computation[name].shapes[0] for name in instruction.operands)
    match = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
    axes = [int(axis) for axis in match[1].split(",") if axis] if match else []
    contracted = math.prod(left.dims[axis] for axis in axes)
    batched = "lhs_batch_dims={" in instruction.attributes
    return Dot(result.dtype, result.dims, contracted, 0, left.bytes + right.bytes, batched)
