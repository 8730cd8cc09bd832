"""A worker's side of rounds: contributions go out, decisions and parameters come back.

A contribution is held until its round is decided, for the round may be gathered again (a member was lost, a shard was
restarted): then it is sent again under the new attempt, by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from stepd.buffers import Array, Picture
from stepd.contribution import Contribution, Settled, failure
from stepd.delivery import Delivery
from stepd.errors import Aborted, StepdError
from stepd.membership import Membership, Rejoined
from stepd.outcome import decision_of
from stepd.parameters import check_whole
from stepd.results import Receipt
from stepd.retry import PAUSE_S_MIN, passes
from stepd.session import together
from stepd.streams import RunStreams
from stepd.v1 import coordinator_pb2, round_pb2, shard_pb2
from stepd.waiting import look_after, nothing

T = TypeVar("T")


class _Refused(Exception):
    """No round takes a contribution."""


class Exchange:
    """The rounds of one worker. Lives in the session's loop; one call at a time."""

    def __init__(self, streams: RunStreams, first: round_pb2.RoundId, step: int) -> None:
        """
        Args:
            streams: of the run.
            first: the attempt that is the first to want a contribution of this member. One to an earlier attempt of
                the round would be answered with LATE, as that does without it.
            step: steps applied by now.
        """
        self._streams = streams
        self._first = first
        self._next = first.round  # round of the next contribution
        self._sequence = 0  # of the latest
        # Steps applied when the membership was last lost and had back.
        self._rejoined_at = 0
        # Steps applied in the parameters that were read last: what the next gradient is computed from.
        self.version = step
        self._held: Contribution | None = None
        self._resending: asyncio.Task[None] | None = None
        self._busy = False
        self._delivery = Delivery(streams)
        self.membership: Membership  # set by join, which needs our on_round first

    @property
    def acknowledged(self) -> round_pb2.RoundId | None:
        """The attempt whose contribution every shard has acknowledged last."""
        return self._delivery.acknowledged

    @property
    def held(self) -> Contribution | None:
        """The contribution whose round is not known to be decided."""
        return self._held

    # --- What a worker calls ------------------------------------------------------------------------------------

    async def step(self, contribution: Contribution, picture: Picture, regions: Sequence[Array]) -> Settled:
        """Send, wait for the round, and read the parameters after it."""
        return await self._guarded(self._step(contribution, picture, regions))

    async def push(self, contribution: Contribution) -> Receipt:
        """Send, and wait for the receipts only; in turn, until it is known that it counts."""
        return await self._guarded(self._push(contribution))

    async def pull(self, picture: Picture, regions: Sequence[Array]) -> None:
        """Read the parameters: after the decision of what this worker sent last, or as they are."""
        if picture.shards:
            await self._guarded(self._pull(picture, regions))

    def on_round(self, now: round_pb2.RoundId, counted: int = 0) -> None:
        """Told with every renewal of the lease which round is gathered: it may want our gradient again.

        Args:
            now: the attempt.
            counted: the sequence of our latest contribution that counts, where they are taken in turn.
        """
        held = self._held
        if held is None or held.over or self._busy or held.round < 0:
            return
        if counted >= held.sequence or (now.round > held.round and not held.in_turn):
            # Decided. How, is asked with the next call.
            held.over = True
            return
        again = (now.round, now.attempt) > (held.round, held.attempt)
        if again and (held.in_turn or now.round == held.round) and self._resending is None:
            held.start_over(now.attempt)
            self._resending = asyncio.create_task(self._resend(held))

    def on_rejoined(self, before: round_pb2.Member, now: round_pb2.Member, state: coordinator_pb2.RunState) -> None:
        """The membership was lost and had back; what was sent under the old one is settled under its name.

        Args:
            before: the old one.
            now: the new one.
            state: of the run; its round is the first that takes a contribution of the new one.
        """
        held, first = self._held, state.round
        self._first, self._next, self._rejoined_at = first, first.round, state.step
        self._delivery.acknowledged = None
        if held is None or held.over or held.sender != before:
            return
        if held.in_turn or held.round < first.round:
            # Counted, or too late: the shards say so when it comes again.
            held.start_over(held.attempt)
        else:
            # Nothing has changed since: the round waits for it.
            held.go_over(now, first)
            self._next = first.round + 1
        if not self._busy and self._resending is None:
            self._resending = asyncio.create_task(self._resend(held))

    # --- Each call ----------------------------------------------------------------------------------------------

    async def _step(self, contribution: Contribution, picture: Picture, regions: Sequence[Array]) -> Settled:
        if self._held is not contribution:  # or else the layout changed under it, and it comes with a new picture
            await self._decide_held()
            self._begin(contribution)
        return await self._settle(contribution, picture, regions)

    async def _push(self, contribution: Contribution) -> Receipt:
        await self._decide_held()
        self._begin(contribution)
        await self._carry(contribution)
        # Should its round start over, another's turn may come first, and this may be too old after it.
        return contribution.receipt(await self._decide_held() if contribution.in_turn else None)

    async def _pull(self, picture: Picture, regions: Sequence[Array]) -> None:
        if self._held is None:
            self._went_on(await self._read(picture, regions), read=True)
        else:
            await self._settle(self._held, picture, regions)

    async def _read(self, picture: Picture, regions: Sequence[Array]) -> Mapping[int, shard_pb2.PullHeader]:
        while True:
            # Who joins in the middle of a round takes part from the next, and needs what that begins with.
            after = self._next - 1 if self._next else None
            now = self._streams.pull_now(picture, regions, self.membership.member, after=after)
            with contextlib.suppress(Rejoined):
                (headers,) = await together((now,), self._guards())
                return headers

    async def _decide_held(self) -> round_pb2.Decision | None:
        """Rounds are decided one after another: the one before must be before there is a place in the next."""
        held, decision = self._held, None
        if held is not None and not (held.over and held.round < 0):  # or else no round took it
            headers, decision = await self._outcome(held)
            self._went_on(headers)
            self._check_outcome(held, decision)
        self._held = None
        return decision

    def _begin(self, contribution: Contribution) -> None:
        self._sequence += 1
        contribution.sequence = self._sequence
        contribution.sender = self.membership.member
        contribution.in_turn = self._streams.in_turn
        old = contribution.based_on < self._rejoined_at and not contribution.in_turn
        if old or contribution.torn:
            contribution.refuse_as_stale(self._next - 1)
        elif not contribution.in_turn:
            contribution.round = self._next
            if self._next == self._first.round:
                contribution.attempt = max(contribution.attempt, self._first.attempt)
            self._next += 1
        self._held = contribution

    async def _guarded(self, call: Coroutine[Any, Any, T]) -> T:
        """Run one of the above; a contribution that was refused is none, any other stays until it is decided."""
        self._busy = True
        try:
            if self._resending is not None:
                self._resending.cancel()
                await asyncio.wait([self._resending])
            self.membership.check()
            return await call
        except StepdError as error:
            if error.reason == "LAYOUT_CHANGED":
                await self._follow(self._held)
                raise
            seen = self.membership.lost(error)
            if self._held is not None and not passes(error) and not self._held.receipts:
                if self._held.round >= 0:
                    self._next = min(self._next, self._held.round)
                self._held = None
            if seen is error:
                raise
            raise seen from error
        finally:
            call.close()
            self._busy = False

    # --- Rounds -------------------------------------------------------------------------------------------------

    async def _outcome(
        self, contribution: Contribution, picture: Picture | None = None, regions: Sequence[Array] = ()
    ) -> tuple[dict[int, shard_pb2.PullHeader], round_pb2.Decision]:
        """Carry a contribution until it is known what has become of it: headers of what was read, and how it ended."""
        while True:
            headers = await self._carry(contribution, picture, regions, peek=picture is None)
            contribution.learn(headers.values())
            decision = await decision_of(contribution, headers, self._streams)
            if not contribution.was_passed_over(decision):
                break
            self._went_on(headers)
            contribution.go_on_to(decision.id.round + 1)
            self._next = max(self._next, contribution.round + 1)
        if contribution.is_in_doubt(decision):
            # Others have had rounds since: whether it counts, the shards say when it comes again.
            contribution.start_over(contribution.attempt)
            contribution.over = False
            await self._carry(contribution)
        return headers, decision

    async def _carry(
        self,
        contribution: Contribution,
        picture: Picture | None = None,
        regions: Sequence[Array] = (),
        *,
        peek: bool = False,
    ) -> dict[int, shard_pb2.PullHeader]:
        """Send what has no receipt yet and, if wanted, await the decision; through as many attempts as it takes.

        Gives the headers by shard: of a picture's pulls, of a peek at one shard, or none.
        """
        while True:
            if self._streams.whole and not contribution.over and not contribution.receipts:
                check_whole(self._streams.table, contribution.views)  # a group may have come in after it was made
            try:
                if contribution.round < 0 and not contribution.over:
                    await self._find_round(contribution)
                headers = await self._carry_once(contribution, picture, regions, peek=peek)
            except Rejoined:
                pass  # what follows from it is in the contribution already
            except Aborted as error:
                if error.reason == "LAYOUT_CHANGED" and picture is None:
                    await self._follow(contribution)
                elif error.reason == "ROUND_RESTARTED":
                    await self._restarted(contribution, error)
                else:
                    raise
            else:
                if not headers or not contribution.in_turn or contribution.is_settled(headers.values()):
                    return headers
                # Others have had rounds since: whether ours counts, the shards say when it comes again.
                contribution.start_over(0)

    async def _find_round(self, contribution: Contribution) -> None:
        """Send to every shard what is for whichever round takes it, until all have it in the same."""
        found = False
        while not found:
            first = asyncio.get_running_loop().create_future()

            async def deliver(shard: int, first: asyncio.Future[int] = first) -> None:
                await self._delivery.deliver(contribution, shard)
                if contribution.is_refused_by(shard):
                    raise _Refused  # the others may not hear of it: whoever decided so may be gone
                if not first.done():
                    first.set_result(shard)

            watch = self._until_restarted(contribution, first)
            with contextlib.suppress(_Refused):
                await together((deliver(shard) for shard in self._streams.shards), [*self._guards(), watch])
            found = contribution.find_round()

    async def _until_restarted(self, contribution: Contribution, first: asyncio.Future[int]) -> None:
        """Raise if the attempt that has taken it on the first shard is over before it is on all."""
        shard = await asyncio.shield(first)
        receipt = contribution.receipts[shard]
        if receipt.HasField("id"):
            request = self._delivery.awaiting(contribution)
            request.round, request.attempt = receipt.id.round, receipt.id.attempt
            header = await self._streams.peek(shard, request)
            if not contribution.is_in(receipt.id, header):
                raise Aborted(f"round {receipt.id.round} took another contribution", reason="ROUND_RESTARTED")

    async def _carry_once(
        self, contribution: Contribution, picture: Picture | None, regions: Sequence[Array], *, peek: bool
    ) -> dict[int, shard_pb2.PullHeader]:
        delivery = self._delivery

        def on_decision(decision: round_pb2.Decision) -> None:
            self._check_outcome(contribution, decision)

        if picture is not None and delivery.is_small(contribution, picture):
            work = together((delivery.at_once(contribution, picture, regions, on_decision),), self._guards())
            (headers,) = await work
            if headers is not None:
                return headers
        if picture is not None:
            first = delivery.receive(contribution, picture, regions, on_decision, self.membership.member)
        elif peek:
            first = delivery.peek(contribution)
        else:
            first = nothing()
        pushes = (delivery.deliver(contribution, shard) for shard in self._streams.shards)
        headers, *_ = await together((first, *pushes), self._guards())
        return headers

    async def _restarted(self, contribution: Contribution, error: Aborted) -> None:
        """The round is gathered again: everything anew under the attempt that the shard named."""
        round_number, attempt = (int(str(error.details.get(name, 0))) for name in ("round", "attempt"))
        if "in_turn" in error.details:
            self._streams.in_turn = error.details["in_turn"] == "1"
        again = round_number == contribution.round and attempt > contribution.attempt
        # In turn, what is for this round, or one before it, is for any.
        if contribution.in_turn or self._streams.in_turn or again:
            contribution.start_over(attempt, in_turn=self._streams.in_turn)
        else:
            await asyncio.sleep(PAUSE_S_MIN)  # another round, or what we know: its own answer follows

    async def _follow(self, contribution: Contribution | None) -> None:
        """The run has a further group: know of it, and where the round stands since."""
        before = self._streams.plan.version
        state = await self._streams.state()
        if contribution is not None and contribution.round >= 0:
            now = state.round
            if now.round > contribution.round and not contribution.in_turn:
                contribution.over = True
            elif now.round == contribution.round and now.attempt > contribution.attempt:
                contribution.start_over(now.attempt)
        if self._streams.plan.version == before:
            await asyncio.sleep(PAUSE_S_MIN)  # known already, as when several shards say so

    async def _resend(self, contribution: Contribution) -> None:
        try:
            await self._carry(contribution)
        except StepdError as error:
            self.membership.lost(error)  # any other is met again by the next call, which can raise it
        finally:
            self._resending = None

    async def _settle(self, contribution: Contribution, picture: Picture, regions: Sequence[Array]) -> Settled:
        headers, decision = await self._outcome(contribution, picture, regions)
        headers = await self._streams.agree(headers, picture, regions, self.membership.member)
        self._went_on(headers, read=True)
        self._check_outcome(contribution, decision)
        self._held = None
        step = next((header.step for header in headers.values()), decision.step)
        return Settled(decision, step)

    def _guards(self) -> list[Any]:
        membership = self.membership
        return [membership.until_ended(), membership.until_rejoined(), look_after(self._streams, membership)]

    def _went_on(self, headers: Mapping[int, shard_pb2.PullHeader], *, read: bool = False) -> None:
        self._next = max(self._next, *(header.round for header in headers.values()), 0)
        if read:
            self.version = max((header.step for header in headers.values()), default=self.version)

    def _check_outcome(self, contribution: Contribution, decision: round_pb2.Decision) -> None:
        """Raise NonFiniteGradient if the round failed, which every worker of it is to know."""
        if decision.id.round != contribution.round or decision.outcome != round_pb2.OUTCOME_FAILED:
            return
        self._held = None
        raise failure(self._streams.run, self._streams.table.specs, decision)
