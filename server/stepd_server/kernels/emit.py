"""A program as one loop in LLVM's language. Pure.

No operation may be reordered, fused or approximated: none has a fast-math flag, so that every element gets the bits
that NumPy gives it. Arrays do not overlap, which lets LLVM work on as many elements at once as the processor can.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal, TypeAlias

from stepd_server.kernels.trace import Operand, Program

Number: TypeAlias = Literal["float", "double"]

FUNCTION: Final = "kernel"
PARTED: Final = "parted"
SWEEP: Final = "sweep"
# What a row of a sweep begins with: the word before anything is done, elements, constants. Then come the cells.
ROW_BEGINS: Final = 3
# The array that no kernel changes.
SUM: Final = "total"

_BINARY: Final = {"add": "fadd", "subtract": "fsub", "multiply": "fmul", "divide": "fdiv"}
_BYTES: Final[dict[Number, int]] = {"float": 4, "double": 8}
_SUFFIX: Final[dict[Number, str]] = {"float": "f32", "double": "f64"}


def emit(program: Program, number: Number) -> str:
    """The text of a module with

    `void kernel(i64 count, ptr constants, ptr cell...)`,
    `void parted(i64 count, ptr constants, i64 part, ptr word, i64 first, ptr slot, ptr cell...)` and
    `void sweep(ptr row, ptr end, i64 part, ptr word, ptr slot)`

    The second does the same, so that who is killed in it can be gone on from: part after part, each of so many
    elements, it copies what it is about to change into the slot (a row for each cell but the sum, in their order), adds
    1 to `first` and stores that in the word, changes it, adds 1 again and stores.

    The third does the second for one row after the other: numbers of 64 bits that are first, count, constants, and the
    cells.
    """
    emitter = _Emitter(program, number)
    return "\n".join([*emitter.lines(), *emitter.parted(), *emitter.sweep()]) + "\n"


class _Emitter:
    def __init__(self, program: Program, number: Number) -> None:
        self._program = program
        self._number = number
        self._suffix = _SUFFIX[number]
        # What each cell holds at this point of the loop.
        self._values: dict[str, str] = {}
        self._names = 0

    def lines(self) -> Iterator[str]:
        n, program = self._number, self._program
        cells = "".join(f", ptr noalias nocapture %{cell}" for cell in program.cells)
        for name in ("sqrt", "fabs"):
            yield f"declare {n} @llvm.{name}.{self._suffix}({n})"
        yield f"define void @{FUNCTION}(i64 %count, ptr noalias nocapture readonly %constants{cells}) noinline {{"
        yield "entry:"
        for i in range(program.constants):
            yield f"  %at.c{i} = getelementptr {n}, ptr %constants, i64 {i}"
            yield f"  %c{i} = load {n}, ptr %at.c{i}"
        yield "  %some = icmp sgt i64 %count, 0"
        yield "  br i1 %some, label %loop, label %end"
        yield "loop:"
        yield "  %i = phi i64 [ 0, %entry ], [ %next, %loop ]"
        for cell in program.cells:
            yield f"  %at.{cell} = getelementptr inbounds {n}, ptr %{cell}, i64 %i"
        for operation in program.operations:
            operands: list[str] = []
            for operand in operation.operands:
                yield from self._load(operand)
                operands.append(self._value(operand))
            yield from self._compute(operation.name, operation.into, operands)
        changed = {operation.into for operation in program.operations}
        for cell in program.cells:
            if cell in changed:
                yield f"  store {n} {self._values[cell]}, ptr %at.{cell}"
        yield "  %next = add nuw nsw i64 %i, 1"
        yield "  %more = icmp slt i64 %next, %count"
        yield "  br i1 %more, label %loop, label %end"
        yield "end:"
        yield "  ret void"
        yield "}"

    def parted(self) -> Iterator[str]:
        n, program = self._number, self._program
        kept = [cell for cell in program.cells if cell != SUM]
        yield "declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)"
        # Nothing is said of what does not overlap: that, the fences and the volatile stores keep the order.
        cells = "".join(f", ptr %{cell}" for cell in program.cells)
        yield (
            f"define void @{PARTED}(i64 %count, ptr %constants, i64 %part, ptr %word, i64 %first, ptr %slot{cells}) {{"
        )
        yield "entry:"
        yield "  br label %loop"
        yield "loop:"
        yield "  %i = phi i64 [ 0, %entry ], [ %next, %body ]"
        yield "  %value = phi i64 [ %first, %entry ], [ %done, %body ]"
        yield "  %more = icmp slt i64 %i, %count"
        yield "  br i1 %more, label %body, label %end"
        yield "body:"
        yield "  %next = add nuw nsw i64 %i, %part"
        yield "  %left = sub i64 %count, %i"
        yield "  %last = icmp slt i64 %left, %part"
        yield "  %size = select i1 %last, i64 %left, i64 %part"
        yield f"  %bytes = mul i64 %size, {_BYTES[n]}"
        for cell in program.cells:
            yield f"  %at.{cell} = getelementptr {n}, ptr %{cell}, i64 %i"
        for row, cell in enumerate(kept):
            yield f"  %before.{cell} = mul i64 %part, {row}"
            yield f"  %row.{cell} = getelementptr {n}, ptr %slot, i64 %before.{cell}"
            yield f"  call void @llvm.memcpy.p0.p0.i64(ptr %row.{cell}, ptr %at.{cell}, i64 %bytes, i1 false)"
        yield "  %held = add i64 %value, 1"
        yield from _stored("%held")
        arguments = "".join(f", ptr %at.{cell}" for cell in program.cells)
        yield f"  call void @{FUNCTION}(i64 %size, ptr %constants{arguments})"
        yield "  %done = add i64 %held, 1"
        yield from _stored("%done")
        yield "  br label %loop"
        yield "end:"
        yield "  ret void"
        yield "}"

    def sweep(self) -> Iterator[str]:
        cells = self._program.cells
        yield f"define void @{SWEEP}(ptr %row, ptr %end, i64 %part, ptr %word, ptr %slot) {{"
        yield "entry:"
        yield "  br label %loop"
        yield "loop:"
        yield "  %at = phi ptr [ %row, %entry ], [ %next, %body ]"
        yield "  %more = icmp ult ptr %at, %end"
        yield "  br i1 %more, label %body, label %over"
        yield "body:"
        yield "  %first = load i64, ptr %at"
        for place, (name, kind) in enumerate((("count", "i64"), ("constants", "ptr"), *((c, "ptr") for c in cells)), 1):
            yield f"  %at.{name} = getelementptr i64, ptr %at, i64 {place}"
            yield f"  %{name} = load {kind}, ptr %at.{name}"
        arguments = "".join(f", ptr %{cell}" for cell in cells)
        yield (
            f"  call void @{PARTED}(i64 %count, ptr %constants, i64 %part, ptr %word, i64 %first, ptr %slot{arguments})"
        )
        yield f"  %next = getelementptr i64, ptr %at, i64 {ROW_BEGINS + len(cells)}"
        yield "  br label %loop"
        yield "over:"
        yield "  ret void"
        yield "}"

    def _load(self, operand: Operand) -> Iterator[str]:
        if isinstance(operand, str) and operand not in self._values:
            assert operand in self._program.cells, f"{operand} is read before anything is in it"
            self._values[operand] = f"%first.{operand}"
            yield f"  %first.{operand} = load {self._number}, ptr %at.{operand}"

    def _value(self, operand: Operand) -> str:
        return self._values[operand] if isinstance(operand, str) else f"%c{operand}"

    def _compute(self, name: str, into: str, operands: list[str]) -> Iterator[str]:
        n = self._number
        if name == "copy":
            (self._values[into],) = operands
            return
        result = self._name()
        if name in _BINARY:
            a, b = operands
            yield f"  {result} = {_BINARY[name]} {n} {a}, {b}"
        elif name == "negative":
            yield f"  {result} = fneg {n} {operands[0]}"
        elif name == "abs":
            yield f"  {result} = call {n} @llvm.fabs.{self._suffix}({n} {operands[0]})"
        elif name == "sqrt":
            yield f"  {result} = call {n} @llvm.sqrt.{self._suffix}({n} {operands[0]})"
        elif name in ("maximum", "minimum"):
            # A NaN wins, whichever of the two it is.
            a, b = operands
            wins, nan = self._name(), self._name()
            yield f"  {wins} = fcmp {'oge' if name == 'maximum' else 'ole'} {n} {a}, {b}"
            yield f"  {nan} = fcmp uno {n} {a}, 0.0"
            either = self._name()
            yield f"  {either} = or i1 {wins}, {nan}"
            yield f"  {result} = select i1 {either}, {n} {a}, {n} {b}"
        elif name == "sign":
            (a,) = operands
            up, down, below = self._name(), self._name(), self._name()
            yield f"  {up} = fcmp ogt {n} {a}, 0.0"
            yield f"  {down} = fcmp olt {n} {a}, 0.0"
            # Zeros and a NaN stay what they are, but for the sign of zero.
            zero = self._name()
            yield f"  {zero} = fadd {n} {a}, 0.0"
            yield f"  {below} = select i1 {down}, {n} -1.0, {n} {zero}"
            yield f"  {result} = select i1 {up}, {n} 1.0, {n} {below}"
        else:
            raise AssertionError(name)
        self._values[into] = result

    def _name(self) -> str:
        self._names += 1
        return f"%v{self._names}"


def _stored(value: str) -> Iterator[str]:
    """A store with all before it before it, and all after it after it, as far as this process is concerned."""
    fence = '  fence syncscope("singlethread") seq_cst'
    yield fence
    yield f"  store volatile i64 {value}, ptr %word, align 8"
    yield fence
