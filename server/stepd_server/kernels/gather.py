"""What is done to elements of a contribution when they arrive, as one loop in LLVM's language. Pure.

One pass over memory: whether an element is finite, its sum with what is there, and the sum of squares of what is
complete, in the order of `shard/lanes.py`. As in emit.py no operation may be reordered, fused or approximated.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Final

from stepd_server.kernels.emit import FUNCTION, Number
from stepd_server.shard.lanes import LANES

_INTEGER: Final[dict[Number, str]] = {"float": "i32", "double": "i64"}
# All but the sign; and an infinity, which no finite number comes up to so.
_MAGNITUDE: Final[dict[Number, int]] = {"float": 0x7FFFFFFF, "double": 0x7FFFFFFFFFFFFFFF}
_INFINITE: Final[dict[Number, int]] = {"float": 0x7F800000, "double": 0x7FF0000000000000}
_LINE: Final = 64
_BYTES: Final[dict[Number, int]] = {"float": 4, "double": 8}


@dataclass(frozen=True)
class Form:
    """What a loop does.

    Attributes:
        number: of contribution and sum.
        arrives: there is a contribution; otherwise the sum is there and only its squares are wanted.
        weighted: it is multiplied by a weight.
        reached: it is added to the sum; otherwise it is stored there.
        complete: the sum's squares are wanted.
        limited: of the sum multiplied by a factor and brought within limits.
    """

    number: Number
    arrives: bool = True
    weighted: bool = False
    reached: bool = False
    complete: bool = False
    limited: bool = False


def emit_gather(form: Form) -> str:
    """The text of a module with

    `i32 kernel(ptr data, ptr total, i64 start, i64 stop, ptr begins, ptr lanes, ptr constants)`

    `data` and `total` hold the elements [start, stop) of the flat space. `begins` are the places where a few blocks
    begin there, the first of them at `start` or before, and the next one at `stop` or after; `lanes` has a row for
    each of them, to which squares are added. `constants` are weight, factor, lowest and highest. Gives 1 if a value
    of the contribution is not finite.
    """
    return "\n".join(_Emitter(form).lines()) + "\n"


class _Emitter:
    def __init__(self, form: Form) -> None:
        self._form = form
        self._names = 0

    def lines(self) -> Iterator[str]:
        i = _INTEGER[self._form.number]
        wide = f"<{LANES} x {i}>"
        yield f"declare {i} @llvm.umax.{i}({i}, {i})"
        yield f"declare {wide} @llvm.umax.v{LANES}{i}({wide}, {wide})"
        yield f"declare {i} @llvm.vector.reduce.umax.v{LANES}{i}({wide})"
        yield (
            f"define i32 @{FUNCTION}(ptr noalias nocapture readonly %data, ptr noalias nocapture %total, i64 %start,"
            " i64 %stop, ptr noalias nocapture readonly %begins, ptr noalias nocapture %lanes,"
            " ptr noalias nocapture readonly %constants) {"
        )
        yield "entry:"
        yield from self._constants()
        yield "  br label %blocks"
        # One block after the other: its elements up to the first lane, then a row at a time, then what is left.
        yield from self._blocks()
        yield from self._scalar("head", before="block.begin", at="%at", peak="%peak", lane_ends=True, then="rows")
        yield from self._rows()
        yield from self._scalar("tail", before="rows.done", at="%rows.to", peak="%rows.peak", then="done")
        yield "done:"
        yield "  br label %blocks"
        yield "over:"
        if self._passes_by:
            # Who is told that it is there finds it there.
            yield "  fence seq_cst"
        yield f"  %bad = icmp uge {i} %peak, {_INFINITE[self._form.number]}"
        yield "  %answer = zext i1 %bad to i32"
        yield "  ret i32 %answer"
        yield "}"
        if self._passes_by:
            yield "!0 = !{i32 1}"

    def _constants(self) -> Iterator[str]:
        n = self._form.number
        wide = f"<{LANES} x {n}>"
        for at, name in enumerate(("weight", "factor", "lowest", "highest")):
            yield f"  %at.{name} = getelementptr {n}, ptr %constants, i64 {at}"
            yield f"  %{name} = load {n}, ptr %at.{name}"
            yield f"  %one.{name} = insertelement {wide} poison, {n} %{name}, i64 0"
            yield f"  %wide.{name} = shufflevector {wide} %one.{name}, {wide} poison, <{LANES} x i32> zeroinitializer"

    def _blocks(self) -> Iterator[str]:
        i = _INTEGER[self._form.number]
        yield "blocks:"
        yield "  %block = phi i64 [ 0, %entry ], [ %block.next, %done ]"
        yield "  %at = phi i64 [ %start, %entry ], [ %end, %done ]"
        yield f"  %peak = phi {i} [ 0, %entry ], [ %tail.peak, %done ]"
        yield "  %some = icmp slt i64 %at, %stop"
        yield "  br i1 %some, label %block.begin, label %over"
        yield "block.begin:"
        yield "  %block.next = add nuw nsw i64 %block, 1"
        yield "  %at.begin = getelementptr i64, ptr %begins, i64 %block"
        yield "  %begin = load i64, ptr %at.begin"
        yield "  %at.after = getelementptr i64, ptr %begins, i64 %block.next"
        yield "  %after = load i64, ptr %at.after"
        yield "  %within = icmp slt i64 %after, %stop"
        yield "  %end = select i1 %within, i64 %after, i64 %stop"
        yield f"  %row = getelementptr [{LANES} x double], ptr %lanes, i64 %block"
        yield "  br label %head"

    def _rows(self) -> Iterator[str]:
        i, complete = _INTEGER[self._form.number], self._form.complete
        wide, sums = f"<{LANES} x {i}>", f"<{LANES} x double>"
        yield "rows:"
        yield "  %left = sub i64 %end, %head.at"
        yield f"  %full = and i64 %left, -{LANES}"
        yield "  %rows.end = add i64 %head.at, %full"
        if complete:
            yield f"  %first.sums = load {sums}, ptr %row, align 8"
        ways = [("wide", False)]
        if self._passes_by:
            ways.append(("past", True))
            yield "  %rows.offset = sub i64 %head.at, %start"
            yield f"  %rows.at = getelementptr inbounds {self._form.number}, ptr %total, i64 %rows.offset"
            yield "  %rows.address = ptrtoint ptr %rows.at to i64"
            yield f"  %rows.over = and i64 %rows.address, {_LINE - 1}"
            yield "  %rows.fit = icmp eq i64 %rows.over, 0"
            yield "  br i1 %rows.fit, label %past, label %wide"
        else:
            yield "  br label %wide"
        for way, past in ways:
            yield f"{way}:"
            yield f"  %{way}.at = phi i64 [ %head.at, %rows ], [ %{way}.next, %{way}.body ]"
            yield f"  %{way}.peak = phi {wide} [ zeroinitializer, %rows ], [ %{way}.peak.next, %{way}.body ]"
            if complete:
                yield f"  %{way}.sums = phi {sums} [ %first.sums, %rows ], [ %{way}.sums.next, %{way}.body ]"
            yield f"  %{way}.some = icmp slt i64 %{way}.at, %rows.end"
            yield f"  br i1 %{way}.some, label %{way}.body, label %rows.done"
            yield f"{way}.body:"
            square = yield from self._element(f"%{way}.at", f"%{way}.peak", f"%{way}.peak.next", wide=True, past=past)
            if complete:
                yield f"  %{way}.sums.next = fadd {sums} %{way}.sums, {square}"
            yield f"  %{way}.next = add nuw nsw i64 %{way}.at, {LANES}"
            yield f"  br label %{way}"

        def whichever(what: str) -> str:
            return ", ".join(f"[ %{way}.{what}, %{way} ]" for way, _ in ways)

        yield "rows.done:"
        yield f"  %rows.to = phi i64 {whichever('at')}"
        yield f"  %rows.peaks = phi {wide} {whichever('peak')}"
        if complete:
            yield f"  %rows.sums = phi {sums} {whichever('sums')}"
            yield f"  store {sums} %rows.sums, ptr %row, align 8"
        yield f"  %highest.peak = call {i} @llvm.vector.reduce.umax.v{LANES}{i}({wide} %rows.peaks)"
        yield f"  %rows.peak = call {i} @llvm.umax.{i}({i} %head.peak, {i} %highest.peak)"
        yield "  br label %tail"

    @property
    def _passes_by(self) -> bool:
        """Whether what is stored was not there before, and is not wanted again soon: it need not come to the cache."""
        return self._form.arrives and not self._form.reached

    def _scalar(
        self, name: str, *, before: str, at: str, peak: str, then: str, lane_ends: bool = False
    ) -> Iterator[str]:
        """Elements one by one, up to the block's end; or up to the first lane, if that is nearer."""
        i = _INTEGER[self._form.number]
        yield f"{name}:"
        yield f"  %{name}.at = phi i64 [ {at}, %{before} ], [ %{name}.next, %{name}.body ]"
        yield f"  %{name}.peak = phi {i} [ {peak}, %{before} ], [ %{name}.peak.next, %{name}.body ]"
        yield f"  %{name}.place = sub i64 %{name}.at, %begin"
        yield f"  %{name}.lane = and i64 %{name}.place, {LANES - 1}"
        yield f"  %{name}.more = icmp slt i64 %{name}.at, %end"
        yield f"  %{name}.inside = icmp ne i64 %{name}.lane, 0"
        yield f"  %{name}.some = and i1 %{name}.more, {f'%{name}.inside' if lane_ends else 'true'}"
        yield f"  br i1 %{name}.some, label %{name}.body, label %{then}"
        yield f"{name}.body:"
        square = yield from self._element(f"%{name}.at", f"%{name}.peak", f"%{name}.peak.next", wide=False)
        if self._form.complete:
            yield f"  %{name}.sum.at = getelementptr double, ptr %row, i64 %{name}.lane"
            yield f"  %{name}.sum = load double, ptr %{name}.sum.at"
            yield f"  %{name}.sum.next = fadd double %{name}.sum, {square}"
            yield f"  store double %{name}.sum.next, ptr %{name}.sum.at"
        yield f"  %{name}.next = add nuw nsw i64 %{name}.at, 1"
        yield f"  br label %{name}"

    def _element(
        self, at: str, peak: str, peak_next: str, *, wide: bool, past: bool = False
    ) -> Generator[str, None, str]:
        """One element, or a row of them; gives the name of its square, if that is wanted.

        Args:
            past: it is stored past the cache, at the beginning of a line.
        """
        form = self._form
        align = _BYTES[form.number]

        def typed(scalar: str) -> str:
            return f"<{LANES} x {scalar}>" if wide else scalar

        n, i = typed(form.number), typed(_INTEGER[form.number])
        constant = "%wide." if wide else "%"
        offset, total_at = self._name(), self._name()
        yield f"  {offset} = sub i64 {at}, %start"
        yield f"  {total_at} = getelementptr inbounds {form.number}, ptr %total, i64 {offset}"
        if form.arrives:
            data_at, value, bits, size = (self._name() for _ in range(4))
            yield f"  {data_at} = getelementptr inbounds {form.number}, ptr %data, i64 {offset}"
            yield f"  {value} = load {n}, ptr {data_at}, align {align}"
            yield f"  {bits} = bitcast {n} {value} to {i}"
            mask = _MAGNITUDE[form.number]
            yield f"  {size} = and {i} {bits}, {_constant(_INTEGER[form.number], mask, wide)}"
            kind = f"v{LANES}{_INTEGER[form.number]}" if wide else i
            yield f"  {peak_next} = call {i} @llvm.umax.{kind}({i} {peak}, {i} {size})"
            if form.weighted:
                unweighted, value = value, self._name()
                yield f"  {value} = fmul {n} {unweighted}, {constant}weight"
            if form.reached:
                there, more = self._name(), value
                value = self._name()
                yield f"  {there} = load {n}, ptr {total_at}, align {align}"
                yield f"  {value} = fadd {n} {there}, {more}"
            where = f"align {_LINE}, !nontemporal !0" if past else f"align {align}"
            yield f"  store {n} {value}, ptr {total_at}, {where}"
        else:
            value = self._name()
            yield f"  {value} = load {n}, ptr {total_at}, align {align}"
            yield f"  {peak_next} = select i1 true, {i} {peak}, {i} {peak}"
        if not form.complete:
            return ""
        if form.limited:
            unscaled, value = value, self._name()
            yield f"  {value} = fmul {n} {unscaled}, {constant}factor"
            for compare, bound in (("oge", "lowest"), ("ole", "highest")):
                wins, nan, either, clipped = (self._name() for _ in range(4))
                yield f"  {wins} = fcmp {compare} {n} {value}, {constant}{bound}"
                yield (
                    f"  {nan} = fcmp uno {n} {value}, zeroinitializer"
                    if wide
                    else f"  {nan} = fcmp uno {n} {value}, 0.0"
                )
                yield f"  {either} = or {typed('i1')} {wins}, {nan}"
                yield f"  {clipped} = select {typed('i1')} {either}, {n} {value}, {n} {constant}{bound}"
                value = clipped
        if form.number != "double":
            narrow, value = value, self._name()
            yield f"  {value} = fpext {n} {narrow} to {typed('double')}"
        square = self._name()
        yield f"  {square} = fmul {typed('double')} {value}, {value}"
        return square

    def _name(self) -> str:
        self._names += 1
        return f"%v{self._names}"


def _constant(kind: str, value: int, wide: bool) -> str:
    return f"splat ({kind} {value})" if wide else str(value)
