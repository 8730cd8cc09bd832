"""A worker of a run: what a training process holds."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np

from stepd import encodings
from stepd.buffers import Array, Buffers, copy_into
from stepd.compression import Compressed, Compression
from stepd.contribution import Contribution
from stepd.definitions import RunSpec
from stepd.errors import Aborted, InvalidArgument, StepdError, UnknownParameter
from stepd.exchange import Exchange
from stepd.limits import METRIC_NAME_CHARS_MAX, METRICS_MAX
from stepd.membership import Membership
from stepd.parameters import check_gradients
from stepd.policies import Missing
from stepd.reading import Reading, Wanted
from stepd.results import Receipt, StepResult
from stepd.session import UNDONE_AFTER
from stepd.settings import Unfit, fit, refuse, shown
from stepd.sharing import Sharing
from stepd.streams import RunStreams
from stepd.v1 import coordinator_pb2, round_pb2
from stepd.views import Seen

T = TypeVar("T")


class Worker:
    """One member of a run, from `Run.join` to `leave`; a context manager. For one thread at a time: others wait.

    A gradient counts once, however often it has to be sent. A `step` that was interrupted or gave up is still on its
    way: the next call first sees to it that it arrives, and only then sends another.
    """

    def __init__(
        self,
        spec: RunSpec,
        streams: RunStreams,
        exchange: Exchange,
        sharing: Sharing,
        compression: Compression | None,
    ) -> None:
        """Not to be called: `Run.join` makes workers."""
        self._session = streams.session
        self._run = spec.name
        self._missing: Missing = spec.missing
        self._streams = streams
        self._exchange = exchange
        self._membership = exchange.membership
        self._sharing = sharing
        self._reading = Reading(lambda: streams.known, Buffers())
        self._copies = Buffers(2)
        self._seen: list[Seen] = []  # what the latest result shows of shards' memory
        self._compression = compression
        self._lock = threading.Lock()
        self._sums: dict[int, Array] = {}
        self._summed = 0
        self._summed_from = 0  # the version that the first of what was accumulated was computed from
        # A worker that nobody holds any more must not keep its place; the lease then runs out.
        self._abandon = weakref.finalize(self, _abandon, self._membership, sharing, streams)

    def __repr__(self) -> str:
        return f"Worker(run={self._run!r}, id={self.id!r}, rank={self.rank})"

    @property
    def id(self) -> str:
        """The worker's name in the run."""
        return self._membership.member.worker

    @property
    def rank(self) -> int:
        """From 0; unique in the run."""
        return self._membership.member.rank

    # --- Steps --------------------------------------------------------------------------------------------------

    def pull(
        self,
        *,
        names: Iterable[str] | None = None,
        dtype: Any = None,
        out: Mapping[str, Array] | None = None,
    ) -> dict[str, Array]:
        """Read the parameters, all of one version: after the round that this worker pushed to last.

        Args:
            names: only these.
            dtype: cast all to it; None gives each its own.
            out: arrays to write into, by name; they are the result then. After an error their content is undefined.

        Raises:
            NonFiniteGradient: the round that was awaited failed, and the run says that every worker is told.
        """
        with self._lock:
            wanted, _ = self._through(
                lambda wanted: self._exchange.pull(wanted.picture, wanted.regions),
                lambda: self._reading.want(names=names, dtype=dtype, out=out),
            )
            return wanted.arrays()

    def push(self, grads: Mapping[str, Any], *, weight: float = 1.0) -> Receipt:
        """Send a contribution without waiting for its step. The arrays may be changed afterwards.

        In runs that take contributions in turn (`Async`, `BoundedStaleness`) it waits for its turn, and then for what
        becomes of it; in any run for that, if the round is closed without it.

        Args:
            grads: name to gradient; may leave parameters out.
            weight: of this contribution, in runs with reduce="weighted".
        """
        with self._lock:
            arrays = self._check(grads)
            # The round may be gathered again, so a gradient is needed until it is decided.
            compressed = self._compressed(arrays)
            sent = compressed.arrays if compressed else copy_into(self._copies, arrays)
            contribution = Contribution.of(sent, _weight(weight), self._exchange.version, torn=self._look_away())
            receipt = self._session.run(self._exchange.push(contribution))
            if compressed and receipt.counts:
                compressed.counts()
            return receipt

    def step(self, grads: Mapping[str, Any] | None = None, *, weight: float = 1.0, view: bool = False) -> StepResult:
        """Send a contribution, wait until the round is decided, and read the parameters after it.

        Args:
            grads: name to gradient; may leave parameters out. None: the mean of what was accumulated. Given besides
                accumulated ones, it is the last of them.
            weight: of this contribution, in runs with reduce="weighted".
            view: give parameters that cannot be written to, without a copy where a shard on this host has them: they
                are good until this worker's next `step` or `push`. If they were written over before (the lease ended,
                or rounds do not wait for everybody any more) the gradient is not sent, and its receipt is "stale".
                Runs whose rounds do not wait for everybody copy.

        Raises:
            NonFiniteGradient: somebody's gradient was not finite, and the run was created with on_nonfinite="error".
        """
        with self._lock:
            number = _weight(weight)  # first: a wrong one must not cost what was accumulated
            arrays, own = self._gradient(grads)
            compressed = self._compressed(arrays)
            sent = compressed.arrays if compressed else arrays
            based_on = self._summed_from if own else self._exchange.version
            contribution = Contribution.of(sent, number, based_on, torn=self._look_away())
            view = view and self._streams.waits_for_all
            try:
                wanted, settled = self._through(
                    lambda wanted: self._exchange.step(contribution, wanted.picture, wanted.regions),
                    self._reading.view if view else self._reading.want,
                    early=not view,
                )
            except BaseException:
                self._keep(contribution, arrays, compressed, own=own)
                raise
            decision = settled.decision
            if view:
                self._seen = self._reading.seen
            receipt = contribution.receipt(decision)
            if compressed and receipt.counts:
                compressed.counts()
            return StepResult(
                step=settled.step,
                params=wanted.arrays(),
                lr=[group.lr for group in decision.groups],
                grad_norm=decision.grad_norm,
                clip_scale=decision.clip_scale,
                skipped=decision.outcome != round_pb2.OUTCOME_APPLIED,
                receipt=receipt,
            )

    def _look_away(self) -> bool:
        """Whether views that the worker has had were written over while it had them. Now they may be."""
        seen, self._seen = self._seen, []
        gone = any(one.gone for one in seen)
        if gone:
            with contextlib.suppress(StepdError):
                self._session.run(self._streams.state())  # whether rounds wait for everybody
        return gone

    def accumulate(self, grads: Mapping[str, Any]) -> None:
        """Add the gradient of a micro-batch to those that the next `step` sends the mean of. Copies."""
        with self._lock:
            self._accumulate(grads)

    def gradient_buffers(self) -> dict[str, Array]:
        """Arrays to compute gradients into, by name, in the dtype of the run's masters.

        `step` with these copies nothing on the way to shards on this host; with shards elsewhere it works as ever.

        They belong to the worker from `step` or `push` until it returns. After a group was added, ask again.
        """

        async def lend() -> dict[str, Array]:
            return self._sharing.gradients(self._streams.plan)

        with self._lock:
            return self._session.run(lend())

    def error_feedback(self) -> dict[str, Array]:
        """What the run's encoding of gradients has left out so far and this worker still owes, by name: copies.

        For `Run.join(error_feedback=...)` of a process that takes its place. Empty if nothing is left out.
        """
        with self._lock:
            owed = self._compression.error if self._compression else {}
            return {self._streams.plan.parameters[id_].name: array.copy() for id_, array in owed.items()}

    def _compressed(self, arrays: Mapping[int, Array]) -> Compressed | None:
        return self._compression.compress(self._streams.plan, arrays) if self._compression else None

    def zero_grad(self) -> None:
        """Drop what was accumulated."""
        with self._lock:
            self._sums, self._summed = {}, 0

    def _accumulate(self, grads: Mapping[str, Any]) -> None:
        if not self._summed:
            self._summed_from = self._exchange.version
        for id_, array in self._check(grads).items():
            if id_ in self._sums:
                self._sums[id_] += array
            else:
                self._sums[id_] = array.copy()
        self._summed += 1

    def _gradient(self, grads: Mapping[str, Any] | None) -> tuple[dict[int, Array], bool]:
        """What a step is to send, and whether it is in memory of our own."""
        if not self._summed:
            if grads is None:
                raise InvalidArgument(
                    "step: nothing to send: give gradients, or call accumulate first", expected="gradients", given=None
                )
            return self._check(grads), False
        if grads is not None:
            self._accumulate(grads)
        mean = dict(sorted(self._sums.items()))
        for total in mean.values():
            np.divide(total, self._summed, out=total)
        self._sums, self._summed = {}, 0
        return mean, True

    def _keep(
        self, contribution: Contribution, arrays: Mapping[int, Array], compressed: Compressed | None, *, own: bool
    ) -> None:
        """After a step that broke off: what is under way is needed still, and the caller's arrays are the caller's."""
        if self._exchange.held is contribution:
            if compressed:
                compressed.counts()
            elif not own:
                copies = copy_into(self._copies, arrays)
                contribution.views = copies
        elif own and not contribution.sequence:
            self._sums, self._summed = dict(arrays), 1  # not begun: the mean waits for the next step

    # --- Groups that are added ----------------------------------------------------------------------------------

    def _check(self, grads: Mapping[str, Any]) -> dict[int, Array]:
        return self._knowing(lambda: check_gradients(self._streams.table, grads, self._missing))

    def _knowing(self, what: Callable[[], T]) -> T:
        """Do what names parameters; once more if it names one that the run has got meanwhile."""
        known = self._streams.known
        try:
            return what()
        except UnknownParameter:
            with contextlib.suppress(StepdError):
                self._session.run(self._streams.state())
            if self._streams.known is known:
                raise
            return what()

    def _through(
        self, call: Callable[[Wanted], Coroutine[Any, Any, T]], want: Callable[[], Wanted], *, early: bool = False
    ) -> tuple[Wanted, T]:
        """Make a call that pulls; again with another picture for as long as the run has got more parameters.

        Args:
            early: make the resulting arrays while the streams run.
        """
        while True:
            wanted = self._knowing(want)
            try:
                return wanted, self._session.run(call(wanted), meanwhile=wanted.arrays if early else None)
            except Aborted as error:
                if error.reason != "LAYOUT_CHANGED":
                    raise

    # --- Membership ---------------------------------------------------------------------------------------------

    def report(self, **metrics: float) -> None:
        """Show numbers, such as a loss, to whoever watches the run. Returns at once.

        With the schedule `ReduceOnPlateau` each report is what `scheduler.step(metric)` is in torch. The metric is
        "loss", or the only one of the first report that has but one. It takes effect within about a second. Of the
        workers that report, the one with the lowest rank counts.
        """
        if len(metrics) > METRICS_MAX:
            refuse("report", "metrics", len(metrics), f"at most {METRICS_MAX}")
        numbers = {}
        for name, value in metrics.items():
            if not 1 <= len(name) <= METRIC_NAME_CHARS_MAX:
                refuse("report", "name", name, f"1 to {METRIC_NAME_CHARS_MAX} characters")
            try:
                numbers[name] = float(value)
            except (TypeError, ValueError):
                refuse("report", name, value, "a number")
        self._membership.report(numbers)

    def leave(self) -> None:
        """Give the place in the run up. May be repeated, and is no error if the fleet is gone.

        What every shard has acknowledged still counts.
        """
        self._abandon.detach()
        with contextlib.suppress(StepdError):  # the client is closed: nobody can be told
            self._session.run(self._leave())

    async def _leave(self) -> None:
        try:
            await self._membership.leave(self._exchange.acknowledged)
        finally:
            self._sharing.close()
            self._streams.kept.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.leave()


async def join(
    spec: RunSpec,
    streams: RunStreams,
    request: coordinator_pb2.JoinRunRequest,
    error_feedback: Mapping[str, Any] | None = None,
) -> Worker:
    """Become a member. In the session's loop."""
    compression = _compression(spec, streams, error_feedback)  # first: what is wrong takes no place in the run
    answer: coordinator_pb2.JoinRunResponse = await streams.session.ask("JoinRun", request)
    streams.learn(answer.run.spec, answer.layout)
    sharing = Sharing(streams.session, spec.name, answer.member)
    streams = streams.of_worker(sharing, answer.run.spec)
    exchange = Exchange(streams, answer.run.round, answer.run.step)

    def on_rejoined(before: round_pb2.Member, now: coordinator_pb2.JoinRunResponse) -> None:
        streams.learn(now.run.spec, now.layout)
        sharing.rename(now.member)
        exchange.on_rejoined(before, now.member, now.run)

    exchange.membership = Membership(streams.session, request, answer.member, exchange.on_round, on_rejoined)
    try:
        await sharing.begin(streams.plan)
    except UNDONE_AFTER:
        await exchange.membership.leave(None)
        raise
    return Worker(spec, streams, exchange, sharing, compression)


def _compression(spec: RunSpec, streams: RunStreams, error_feedback: Mapping[str, Any] | None) -> Compression | None:
    """What a worker needs to encode gradients with an error; None if there is none."""
    encoding = encodings.of_gradients(spec.wire.gradients)
    if encoding is None or not encoding.keeps_error:
        if error_feedback:
            refuse(f"run {spec.name!r}: join", "error_feedback", sorted(error_feedback), "None: nothing is left out")
        return None
    owed = check_gradients(streams.table, error_feedback, "skip") if error_feedback else {}
    return Compression(encoding, {id_: array.copy() for id_, array in owed.items()})


def _abandon(membership: Membership, sharing: Sharing, streams: RunStreams) -> None:
    membership.abandon()
    sharing.abandon()
    streams.session.loop.post(streams.kept.close)


def _weight(weight: float) -> float:
    try:
        number = fit(float, weight)
    except Unfit:
        number = np.nan
    if not isinstance(number, float) or not number > 0:
        refuse("contribution", "weight", shown(weight), "a positive finite number")
    return number
