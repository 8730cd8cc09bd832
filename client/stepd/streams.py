"""Bulk calls to the shards of a run: one stream each, tried again under the same identity.

What an answer means for a round is not decided here: ROUND_RESTARTED and the like are raised to who knows the round.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any, Final

import grpc

from stepd import wire
from stepd.buffers import Array, Picture
from stepd.errors import Aborted, StepdError, Unavailable
from stepd.parameters import ParameterTable
from stepd.retry import PAUSE_S_MIN, Patience
from stepd.session import Session, together
from stepd.status import from_rpc_error
from stepd.transfer import Plan, ShardPush
from stepd.v1 import coordinator_pb2, round_pb2, run_pb2, shard_pb2

# Raised at once: the same request cannot succeed any more.
OVER: Final = frozenset({"ROUND_RESTARTED", "VERSION_PASSED"})

OnHeader = Callable[[shard_pb2.PullHeader], None]


class RunStreams:
    """All shards of one run.

    Attributes:
        run: its name.
        plan: its layout.
        table: its parameters by name.
    """

    def __init__(self, session: Session, spec: run_pb2.RunSpec, layout: run_pb2.Layout, table: ParameterTable) -> None:
        self.session = session
        self.run = spec.name
        self.table = table
        self.plan = Plan(layout, table.specs)
        self._targets = list(self.plan.targets)

    @property
    def shards(self) -> range:
        return range(len(self._targets))

    async def load(self, views: Mapping[int, memoryview]) -> None:
        """Give every shard its initial parameters."""
        await together(self._load(shard, views) for shard in self.shards)

    async def _load(self, shard: int, views: Mapping[int, memoryview]) -> None:
        header = wire.encode_header(shard_pb2.LoadParametersRequest, shard_pb2.LoadParametersHeader(run=self.run))
        push, patience = self.plan.pushes()[shard], self._patience("LoadParameters", shard)
        while True:
            patience.begin()
            try:
                await self._send(self._calls(shard).load, header, push, views)
                return
            except grpc.RpcError as error:
                await self._wait(patience, from_rpc_error(error, target=self._targets[shard]))

    async def push(
        self, shard: int, header: shard_pb2.PushHeader, push: ShardPush, views: Mapping[int, memoryview]
    ) -> shard_pb2.PushResponse:
        """One contribution to one shard, sent until there is a receipt. Aborted of a reason in OVER is raised."""
        raw = wire.encode_header(shard_pb2.PushRequest, header)
        patience = self._patience("Push", shard)
        for tries in count(1):
            patience.begin()
            try:
                receipt: shard_pb2.PushResponse = await self._send(self._calls(shard).push, raw, push, views)
                if tries > 1 and receipt.status == shard_pb2.RECEIPT_STATUS_DUPLICATE:
                    receipt.status = shard_pb2.RECEIPT_STATUS_ACCEPTED  # by a try whose answer was lost
                return receipt
            except grpc.RpcError as error:
                await self._wait(patience, from_rpc_error(error, target=self._targets[shard]))
        raise AssertionError  # count does not end

    async def pull(
        self,
        shard: int,
        request: shard_pb2.PullRequest,
        picture: Picture,
        regions: Sequence[Array],
        on_header: OnHeader,
    ) -> shard_pb2.PullHeader:
        """One version of what a shard holds, written into regions.

        Args:
            shard: which.
            request: its ranges are filled in here.
            picture: what is wanted.
            regions: where it goes.
            on_header: called before anything is written; may raise.

        Raises:
            Aborted: of a reason in OVER.
        """
        request.ClearField("ranges")
        request.ranges.extend(picture.ranges(shard))
        awaits_version = request.HasField("round") or request.HasField("step")
        patience = self._patience("Pull", shard)
        while True:
            patience.begin()
            try:
                return await self._receive(shard, request, picture, regions, on_header, patience)
            except grpc.RpcError as error:
                failure = from_rpc_error(error, target=self._targets[shard])
                if failure.reason == "VERSION_PASSED" and not awaits_version:
                    # Too slow a reader of whatever was there: the version that is there now is as good.
                    await asyncio.sleep(patience.pause(failure))
                else:
                    await self._wait(patience, failure)

    async def peek(self, shard: int, request: shard_pb2.PullRequest) -> shard_pb2.PullHeader:
        """Only the header of a pull: how a round ended."""
        slices = self.plan.shards[shard]
        request.ClearField("ranges")
        if slices:  # the smallest there is, in case the shard is quicker than our cancellation
            smallest = min(slices, key=lambda piece: piece.count)
            request.ranges.extend(self.plan.ranges(shard, frozenset((smallest.parameter,))))
        patience = self._patience("Pull", shard)
        while True:
            patience.begin()
            call = self._calls(shard).pull(request, timeout=self.session.bulk_timeout(0))
            try:
                return _header(await call.read())
            except grpc.RpcError as error:
                await self._wait(patience, from_rpc_error(error, target=self._targets[shard]))
            finally:
                call.cancel()

    async def _send(self, call_method: Any, header: bytes, push: ShardPush, views: Mapping[int, memoryview]) -> Any:
        """Write a stream and read its answer, which may come before all is written."""
        call = call_method(timeout=self.session.bulk_timeout(push.payload_bytes))
        try:
            try:
                await call.write(header)
                for chunk in push.chunks:
                    await call.write(chunk.encode(views))
                await call.done_writing()
            except (grpc.RpcError, asyncio.InvalidStateError):
                # The call is over: its status, which follows, says why better than the write that failed.
                pass
            return await call
        finally:
            call.cancel()

    async def _receive(
        self,
        shard: int,
        request: shard_pb2.PullRequest,
        picture: Picture,
        regions: Sequence[Array],
        on_header: OnHeader,
        patience: Patience,
    ) -> shard_pb2.PullHeader:
        timeout = self.session.bulk_timeout(picture.payload_bytes(shard))
        call = self._calls(shard).pull(request, timeout=timeout)
        try:
            header = _header(await call.read())
            patience.alive()
            on_header(header)
            receiver = picture.receiver(shard, regions)
            while (raw := await call.read()) is not grpc.aio.EOF:
                message = wire.decode_pull(raw)
                if not isinstance(message, wire.Chunk):
                    raise StepdError(f"shard {shard} sent a second header in one pull")
                receiver.take(message)
            if not receiver.complete:
                raise StepdError(f"shard {shard} ended a pull before its end")
            return header
        finally:
            call.cancel()

    async def _wait(self, patience: Patience, error: StepdError) -> None:
        """Pause before the next try; raise if there is none."""
        if isinstance(error, Aborted) and error.reason in OVER:
            raise error
        if error.reason == "ROUND_PENDING":
            patience.alive()
            await asyncio.sleep(PAUSE_S_MIN)
            return
        await asyncio.sleep(patience.pause(error))
        if isinstance(error, Unavailable):
            # A shard that was started again may be elsewhere.
            for shard, target in (await self.session.shard_targets()).items():
                if shard < len(self._targets):
                    self._targets[shard] = target

    def _calls(self, shard: int) -> Any:
        return self.session.shard(self._targets[shard])

    def _patience(self, method: str, shard: int) -> Patience:
        return self.session.patience(f"{method} of run {self.run!r} on shard {shard}", self._targets[shard])

    async def state(self) -> coordinator_pb2.RunState:
        """The run as the coordinator sees it."""
        answer: coordinator_pb2.GetRunResponse = await self.session.ask(
            "GetRun", coordinator_pb2.GetRunRequest(run=self.run)
        )
        return answer.run

    async def pull_now(
        self,
        picture: Picture,
        regions: Sequence[Array],
        member: round_pb2.Member | None = None,
        *,
        after: int | None = None,
        averaged: bool = False,
    ) -> Any:
        """The parameters as they are, of one version on all shards; not before round `after` is decided.

        Gives the headers by shard.
        """
        plain = shard_pb2.PullRequest(run=self.run, member=member, round=after, averaged=averaged)
        headers = await self.pull_all(plain, picture, regions, _ignore)
        return await self.agree(headers, picture, regions, member, averaged=averaged)

    async def pull_all(
        self, request: shard_pb2.PullRequest, picture: Picture, regions: Sequence[Array], on_header: OnHeader
    ) -> dict[int, shard_pb2.PullHeader]:
        """The same request to all shards of a picture at once."""

        def pull(shard: int) -> Any:
            own = shard_pb2.PullRequest()
            own.CopyFrom(request)
            return self.pull(shard, own, picture, regions, on_header)

        return dict(zip(picture.shards, await together(pull(shard) for shard in picture.shards), strict=True))

    async def agree(
        self,
        headers: dict[int, shard_pb2.PullHeader],
        picture: Picture,
        regions: Sequence[Array],
        member: round_pb2.Member | None = None,
        *,
        averaged: bool = False,
    ) -> dict[int, shard_pb2.PullHeader]:
        """Pull again from shards that gave an older version than others, until all gave the same."""
        patience = self.session.patience(f"reading one version of run {self.run!r}")
        while len({header.step for header in headers.values()}) > 1:
            newest = max(header.step for header in headers.values())
            behind = [shard for shard, header in headers.items() if header.step < newest]
            patience.begin()

            def again(shard: int, step: int = newest) -> Any:
                request = shard_pb2.PullRequest(run=self.run, member=member, step=step, averaged=averaged)
                return self.pull(shard, request, picture, regions, _ignore)

            try:
                found = await together(again(shard) for shard in behind)
                headers = headers | dict(zip(behind, found, strict=True))
            except Aborted as error:
                # The fleet went on meanwhile: from the beginning, with the versions there are now.
                await asyncio.sleep(patience.pause(error))
                plain = shard_pb2.PullRequest(run=self.run, member=member, averaged=averaged)
                headers = await self.pull_all(plain, picture, regions, _ignore)
        return headers


def _header(raw: Any) -> shard_pb2.PullHeader:
    message = None if raw is grpc.aio.EOF else wire.decode_pull(raw)
    if not isinstance(message, shard_pb2.PullHeader):
        raise StepdError("a shard's pull did not begin with a header")
    return message


def _ignore(_: shard_pb2.PullHeader) -> None:
    """Headers are looked at when all are there."""
