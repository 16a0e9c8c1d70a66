"""What a compiled program does, read from its text: kernels, convolutions, collectives, bytes.

A kernel is an instruction of the entry computation, or of a loop in it, that computes something:
what XLA has fused counts once, what is in a loop as often as the loop runs. A kernel's bytes are
those of its operands and results; of an operand that it only takes slices or rows of, these. What a
TPU keeps beside its cores, not in its memory, has none, and single numbers are no kernels there. Of
branches the one of most kernels counts.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

_BYTES = {"pred": 1, "token": 0, "opaque": 0, "s4": 1, "u4": 1}
_FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all"}
_FREE |= {"partition-id", "replica-id", "opt-barrier", "add-dependency", "iota"}
_PARTS = {"slice", "dynamic-slice", "gather"}
_MOVES = {"copy-start": 0, "slice-start": 1}  # where in their shape the result is
_NO_CODE = ("AllocateBuffer", "ConcatBitcast")  # custom calls of TPUs that compute nothing
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class Instruction(NamedTuple):
    """A line of a computation."""

    name: str
    shape: str  # with dtype and layout, or a tuple of such
    opcode: str
    operands: list[str]  # their names; a constant's value
    attributes: str
    is_root: bool


Computation = dict[str, Instruction]
Placed = tuple[Instruction, Computation]


class Module(NamedTuple):
    """A compiled program."""

    computations: dict[str, Computation]
    entry: str


class Kernel(NamedTuple):
    """An instruction that is launched."""

    instruction: Instruction
    computation: Computation  # that it is a line of
    times: int  # it runs in one run of the program


def parse(text: str) -> Module:
    """Reads the text of a compiled program (``compiled.as_text()``)."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith((" ", "HloModule")):
            name = re.match(r"(ENTRY )?%?([^\s(]+)", line)
            current = computations.setdefault(name.group(2), {})
            entry = name.group(2) if name.group(1) else entry
        elif current is not None and " = " in line:
            instruction = _instruction(line.strip())
            current[instruction.name] = instruction
    return Module(computations, entry)


def _instruction(line: str) -> Instruction:
    name, _, rest = line.partition(" = ")
    end = _closing(rest) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    start = rest.index("(")
    end = start + _closing(rest[start:])
    operands = re.findall(r"%([\w.\-]+)", rest[start:end])
    if rest.startswith("constant"):
        operands = [rest[start + 1 : end - 1]]
    is_root = name.startswith("ROOT ")
    name = name.removeprefix("ROOT ").lstrip("%")
    return Instruction(name, shape, rest[:start], operands, rest[end:], is_root)


def _closing(text: str) -> int:
    """The position after the parenthesis that closes the first one."""
    depth = 0
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return position + 1
    raise ValueError(f"no closing parenthesis in {text[:80]!r}")


def arrays(shape: str) -> list[tuple[str, tuple[int, ...]]]:
    """The dtype and sides of every array in a shape."""
    found = re.findall(r"(\w+)\[([\d,]*)\]", shape)
    return [(dtype, tuple(map(int, filter(None, sides.split(","))))) for dtype, sides in found]


def size(shape: str) -> int:
    """The bytes of an array, or of all arrays of a tuple."""
    return sum(_item_bytes(dtype) * math.prod(sides) for dtype, sides in arrays(shape))


def _in_memory(shape: str) -> int:
    """The bytes that are in the device's memory: not beside the cores of a TPU, its space 1."""
    return size(re.sub(r"\w+\[[\d,]*\]\{[^}]*S\([1-9]\)\}", "", shape))


def _item_bytes(dtype: str) -> int:
    bits = re.search(r"\d+", dtype)
    return _BYTES.get(dtype) or (int(bits.group()) // 8 if bits else 0)


def _parts(instruction: Instruction, computation: Computation, module: Module) -> Iterator[Placed]:
    """What is fused, or the instruction itself."""
    if instruction.opcode != "fusion":
        yield instruction, computation
        return
    fused = module.computations[_called(instruction.attributes)[0]]
    for one in fused.values():
        yield from _parts(one, fused, module)


def kernels(module: Module, name: str = "", times: int = 1) -> Iterator[Kernel]:
    """All that a run of the program launches, or so many runs of one of its computations."""
    computation = module.computations[name or module.entry]
    for instruction in computation.values():
        opcode, attributes = instruction.opcode, instruction.attributes
        if opcode in _FREE or opcode.endswith(("-done", "-update")):
            continue
        if opcode != "fusion" and re.match(r"\w+\[\]\{:T", instruction.shape):
            continue  # a number, which the scalar unit of a TPU computes
        if any(f'"{target}"' in attributes for target in _NO_CODE):
            continue
        if opcode == "while":
            repeats = times * (_trips(instruction, module) or 1)
            for part in re.findall(r"(?:body|condition)=%?([\w.\-]+)", attributes):
                yield from kernels(module, part, repeats)
        elif opcode in ("call", "conditional"):
            branches = [list(kernels(module, part, times)) for part in _called(attributes)]
            yield from max(branches, key=len)  # one of them runs
        else:
            yield Kernel(instruction, computation, times)


def _trips(loop: Instruction, module: Module) -> int | None:
    """How often a loop runs: what XLA notes, or the number that its counter is compared with."""
    if found := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(found.group(1))
    condition = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
    lines = module.computations[condition.group(1)]
    root = next(line for line in lines.values() if line.is_root)
    if root.opcode == "compare" and "direction=LT" in root.attributes:
        limit = lines[root.operands[1]]
        return int(limit.operands[0]) if limit.opcode == "constant" else None
    return None


def _called(attributes: str) -> list[str]:
    several = re.search(r"branch_computations=\{([^}]*)\}", attributes)
    found = several.group(1) if several else attributes
    pattern = r"%([\w.\-]+)" if several else r"(?:to_apply|calls|_computation)=%?([\w.\-]+)"
    return re.findall(pattern, found)


def moved(kernel: Kernel, module: Module) -> int:
    """The bytes that a kernel reads and writes."""
    instruction, computation, _ = kernel
    if instruction.opcode == "fusion":
        fused = module.computations[_called(instruction.attributes)[0]]
        parameters = [i for i in fused.values() if i.opcode == "parameter"]
        root = next(i for i in fused.values() if i.is_root)
        return sum(_read(i, fused) for i in parameters) + _written(root, fused)
    operands = [computation[name] for name in dict.fromkeys(instruction.operands)]
    if instruction.opcode in _MOVES:
        shapes = re.findall(r"\w+\[[\d,]*\](?:\{[^}]*\})?", instruction.shape)
        result = shapes[_MOVES[instruction.opcode]]
        return _in_memory(result) + min(size(result), _in_memory(operands[0].shape))
    if instruction.opcode in _PARTS:
        return 2 * size(instruction.shape)
    return sum(_in_memory(i.shape) for i in operands) + _written(instruction, computation)


def _read(value: Instruction, computation: Computation) -> int:
    """What is read of a value by those that use it."""
    total = 0
    for user in computation.values():
        if value.name not in user.operands:
            continue
        if user.opcode == "bitcast":
            total += _read(user, computation)
        elif user.opcode in _PARTS and user.operands[0] == value.name:
            total += size(user.shape)
        elif user.opcode != "dynamic-update-slice" or user.operands[0] != value.name:
            return _in_memory(value.shape)
    return min(total, _in_memory(value.shape))


def _written(result: Instruction, computation: Computation) -> int:
    if result.opcode == "tuple":
        return sum(_written(computation[name], computation) for name in result.operands)
    if result.opcode == "bitcast":
        return _written(computation[result.operands[0]], computation)
    if result.opcode == "dynamic-update-slice":
        return size(computation[result.operands[1]].shape)
    return _in_memory(result.shape)


def kind(kernel: Kernel, module: Module) -> str:
    """What sort of kernel this is, for a table."""
    opcode, attributes = kernel.instruction.opcode, kernel.instruction.attributes
    parts = [i for i, _ in _parts(*kernel[:2], module)]
    if any(map(_is_convolution, parts)):
        return "convolution"
    if opcode.startswith(COLLECTIVES):
        return "collective"
    if any(i.opcode in ("dot", "convolution") for i in parts):
        return "matrix product"
    if "__cublas" in attributes or "gemm" in attributes.split("kind", 1)[-1]:
        return "matrix product"
    opcode = opcode.removesuffix("-start") if opcode in _MOVES else opcode
    return opcode if opcode in ("copy", "slice", "sort", "custom-call") else "other"


def convolutions(module: Module) -> Counter[str]:
    """The number of convolutions in the program by the dtype they compute in, loops once."""
    return Counter(
        arrays(computation[i.operands[0]].shape)[0][0]
        for computation in module.computations.values()
        for i in filter(_is_convolution, computation.values())
    )


def _is_convolution(instruction: Instruction) -> bool:
    """Not one without places, as which TPUs compute a product of matrices."""
    if instruction.opcode == "convolution":
        return bool(re.search(r"dim_labels=\w*\d", instruction.attributes))
    return "__cudnn$conv" in instruction.attributes


def operations(kernel: Kernel, module: Module) -> int:
    """The floating-point operations of a kernel's convolutions, padding's zeros included."""
    parts = _parts(*kernel[:2], module)
    return sum(_of_convolution(i, within) for i, within in parts if _is_convolution(i))


def _of_convolution(instruction: Instruction, computation: Computation) -> int:
    """Every entry of the kernel meets every place of the smaller map, as ``benchmarks.flops``."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes).groups()
    shapes = [arrays(computation[name].shape)[0][1] for name in instruction.operands[:2]]
    shapes.append(arrays(instruction.shape)[0][1])
    backward = re.search(r"__cudnn\$convBackward(\w+)", instruction.attributes)
    if backward:  # its labels are those of the convolution whose gradient it is
        one, two, three = shapes
        shapes = [one, three, two] if backward.group(1) == "Filter" else [three, two, one]
    images, kernel, outputs = (
        dict(zip(label, sides, strict=True)) for label, sides in zip(labels, shapes, strict=True)
    )
    places = min(_space(images), _space(outputs))
    return 2 * images["b"] * kernel["i"] * kernel["o"] * _space(kernel) * places


def _space(sides: dict[str, int]) -> int:
    return math.prod(side for label, side in sides.items() if label.isdigit())


def collectives(found: list[Kernel]) -> list[dict[str, Any]]:
    """The collectives by kind, with how often they run and what one run moves, largest first."""
    groups: Counter[tuple[str, int]] = Counter()
    for kernel in found:
        opcode = kernel.instruction.opcode
        if opcode.startswith(COLLECTIVES):
            name = next(c for c in COLLECTIVES if opcode.startswith(c))
            shape = kernel.instruction.shape
            # That of an asynchronous start is of its operands and its results.
            bytes_ = size(shape) // (2 if opcode.endswith("-start") and name != "all-reduce" else 1)
            groups[name, bytes_] += kernel.times
    return [
        {"kind": kind, "bytes": bytes_, "times": times}
        for (kind, bytes_), times in sorted(groups.items(), key=lambda item: -item[0][1])
    ]


def oddities(module: Module) -> list[str]:
    """What to look at: float64, callbacks, gathered feature maps, loops of unknown length."""
    found = []
    for computation in module.computations.values():
        for instruction in computation.values():
            name, shape, opcode, _, attributes, _ = instruction
            if "f64[" in shape:
                found.append(f"float64: {name}")
            called_back = opcode == "custom-call" and "callback" in attributes
            if called_back or opcode in ("infeed", "outfeed", "send", "recv"):
                found.append(f"callback: {name}")
            shapes = [s for dtype, s in arrays(shape) if dtype in ("f32", "bf16")]
            of_maps = any(len(s) == 4 and min(s[1:3]) > 1 for s in shapes)
            if opcode == "while" and not _trips(instruction, module):
                found.append(f"a loop of unknown length, counted once: {name}")
            if opcode == "gather" and of_maps:
                found.append(f"gather of a feature map: {name} {shape}")
    return found
