"""One contribution's way to the shards, and what they say of its round. What follows from that is the exchange's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from stepd.buffers import Array, Picture
from stepd.contribution import Contribution
from stepd.errors import Aborted
from stepd.session import together
from stepd.streams import RunStreams
from stepd.transfer import ShardPush
from stepd.v1 import round_pb2, shard_pb2

Headers: TypeAlias = dict[int, shard_pb2.PullHeader]
# Told of the decision of the contribution's round, before parameters are written; may raise.
OnDecision: TypeAlias = Callable[[round_pb2.Decision], None]


class Delivery:
    """Attributes:
    acknowledged: the attempt whose contribution every shard has acknowledged last.
    """

    def __init__(self, streams: RunStreams) -> None:
        self._streams = streams
        self.acknowledged: round_pb2.RoundId | None = None

    async def deliver(self, contribution: Contribution, shard: int) -> Headers:
        """Send it to a shard that has not given a receipt."""
        if shard in contribution.receipts or contribution.over:
            return {}
        header, push = self._header(contribution, shard)
        again = _begin(contribution, shard)
        receipt = await self._streams.push(shard, header, push, contribution.views)
        self._take(contribution, shard, receipt, again=again)
        return {}

    async def receive(
        self,
        contribution: Contribution,
        picture: Picture,
        regions: Sequence[Array],
        on_decision: OnDecision,
        member: round_pb2.Member,
    ) -> Headers:
        """Read the parameters after its round."""
        on_header = _of_its_round(contribution, on_decision)
        try:
            if contribution.in_turn:
                # Others have rounds meanwhile: the version after ours, or a later one.
                return await self._streams.pull_one_version(self.awaiting(contribution), picture, regions, on_header)
            return await self._streams.pull_all(self.awaiting(contribution), picture, regions, on_header)
        except Aborted as error:
            if error.reason != "VERSION_PASSED":
                raise
            # The round is over and so is its version; there is a newer one.
            contribution.over = True
            return await self._streams.pull_now(picture, regions, member)

    async def peek(self, contribution: Contribution) -> Headers:
        """Ask one shard how its round ended."""
        return {0: await self._streams.peek(0, self.awaiting(contribution))}

    def is_small(self, contribution: Contribution, picture: Picture) -> bool:
        """Whether it may go to every shard, and the parameters come back, in one call: nothing has been sent yet."""
        if contribution.round < 0 or contribution.in_turn or contribution.over or contribution.receipts:
            return False
        most, plan = self._streams.session.at_once_bytes, self._streams.plan
        if plan.version != picture.version or picture.shards != list(self._streams.shards):
            return False
        pushes = plan.pushes(contribution.views, self._streams.gradients)
        return all(
            push.payload_bytes <= most and picture.payload_bytes(shard) <= most for shard, push in enumerate(pushes)
        )

    async def at_once(
        self, contribution: Contribution, picture: Picture, regions: Sequence[Array], on_decision: OnDecision
    ) -> Headers | None:
        """Deliver it everywhere and read the parameters after its round; None if these have to be asked for."""
        on_header = _of_its_round(contribution, on_decision)

        async def exchange(shard: int) -> shard_pb2.PullHeader | None:
            header, push = self._header(contribution, shard)
            again = _begin(contribution, shard)
            receipt, pulled = await self._streams.push_and_pull(
                shard, header, push, contribution.views, self.awaiting(contribution), picture, regions, on_header
            )
            self._take(contribution, shard, receipt, again=again)
            return pulled

        pulled = await together(exchange(shard) for shard in self._streams.shards)
        headers = {shard: header for shard, header in enumerate(pulled) if header is not None}
        return headers if len(headers) == len(pulled) else None

    def awaiting(self, contribution: Contribution) -> shard_pb2.PullRequest:
        """A request for what follows from its round."""
        awaited = contribution.round >= 0
        return shard_pb2.PullRequest(
            run=self._streams.run,
            round=contribution.round if awaited else None,
            attempt=contribution.attempt if awaited and not contribution.over else None,
            member=contribution.sender,
        )

    def _header(self, contribution: Contribution, shard: int) -> tuple[shard_pb2.PushHeader, ShardPush]:
        plan = self._streams.plan
        push = plan.pushes(contribution.views, self._streams.gradients)[shard]
        header = shard_pb2.PushHeader(
            run=self._streams.run,
            member=contribution.sender,
            id=None if contribution.round < 0 else contribution.id,
            weight=contribution.weight,
            ranges=push.ranges,
            layout_version=plan.version,
            sequence=contribution.sequence,
            based_on=contribution.based_on,
        )
        return header, push

    def _take(self, contribution: Contribution, shard: int, receipt: shard_pb2.PushResponse, *, again: bool) -> None:
        if again and receipt.status == shard_pb2.RECEIPT_STATUS_DUPLICATE:
            receipt.status = shard_pb2.RECEIPT_STATUS_ACCEPTED
        contribution.receipts[shard] = receipt
        if receipt.HasField("in_turn"):
            self._streams.in_turn = receipt.in_turn
        if len(contribution.receipts) == len(self._streams.shards):
            self.acknowledged = receipt.id if contribution.round < 0 else contribution.id


def _begin(contribution: Contribution, shard: int) -> bool:
    """Note that it may arrive; whether it may have already."""
    tried = (contribution.attempt, shard)
    again = tried in contribution.begun
    contribution.begun.add(tried)
    return again


def _of_its_round(contribution: Contribution, on_decision: OnDecision) -> Callable[[shard_pb2.PullHeader], None]:
    def on_header(header: shard_pb2.PullHeader) -> None:
        if header.HasField("decision") and header.decision.id.round == contribution.round:
            on_decision(header.decision)

    return on_header
