"""Bulk calls to the shards of a run: one stream each, tried again under the same identity.

What an answer means for a round is not decided here: ROUND_RESTARTED and the like are raised to who knows the round.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any, Final, Literal

import grpc

from stepd import at_once, encodings, specs, wire
from stepd.buffers import Array, Picture
from stepd.encodings import Encoding
from stepd.errors import Aborted, StepdError, Unavailable
from stepd.kept import KeptCalls
from stepd.limits import SHARED_BYTES_MIN, WAIT_S
from stepd.one_version import Headers, OnHeader, asking_for, ignore, one_version
from stepd.parameters import ParameterTable
from stepd.retry import PAUSE_S_MIN, Patience
from stepd.session import Session, together
from stepd.sharing import Link, Sharing
from stepd.state_space import StatePicture
from stepd.status import from_rpc_error
from stepd.transfer import Plan, ShardPush
from stepd.v1 import coordinator_pb2, round_pb2, run_pb2, shard_pb2
from stepd.views import ViewPicture, policy_of, receiver_of

# Raised at once: the same request cannot succeed any more.
OVER: Final = frozenset({"ROUND_RESTARTED", "VERSION_PASSED", "LAYOUT_CHANGED"})


class RunStreams:
    """All shards of one run.

    Attributes:
        run: its name.
        whole: it takes only contributions with a gradient for every parameter.
        in_turn: it takes contributions in turn, as far as is known: its owner may change that at any time.
        waits_for_all: a round waits for every member, as far as is known.
        sharing: of a worker, with whom it shares memory.
        kept: of a worker, its calls that stay open.
        gradients: how they are encoded. None: as they are.
        parameters: in what encoding they are asked for; empty for as they are.
    """

    def __init__(self, session: Session, spec: run_pb2.RunSpec, layout: run_pb2.Layout, table: ParameterTable) -> None:
        self.session = session
        self.run = spec.name
        self.whole = spec.missing == run_pb2.MISSING_POLICY_ERROR
        self.in_turn, self.waits_for_all = policy_of(spec)
        # One list also for what `of_worker` makes: what one learns all know.
        self._known = [(Plan(layout, table.specs), table)]
        self._targets = list(self.plan.targets)
        self.sharing: Sharing | None = None
        self.kept = KeptCalls()
        self.gradients: Encoding | None = None
        self.parameters = ""

    def of_worker(self, sharing: Sharing, spec: run_pb2.RunSpec) -> RunStreams:
        """The same streams for one worker, which need not send what it shares, and may encode the rest."""
        own = copy.copy(self)
        own.sharing = sharing
        own.kept = KeptCalls()
        own.gradients = encodings.of_gradients(spec.gradient_encoding) if spec.gradient_encoding else None
        own.parameters = spec.parameter_encoding
        return own

    @property
    def known(self) -> tuple[Plan, ParameterTable]:
        """Its layout and its parameters by name, as far as is known: a group may be added at any time."""
        return self._known[0]

    @property
    def plan(self) -> Plan:
        """Its layout."""
        return self.known[0]

    @property
    def table(self) -> ParameterTable:
        """Its parameters by name."""
        return self.known[1]

    def learn(self, spec: run_pb2.RunSpec, layout: run_pb2.Layout) -> None:
        """Take in what the coordinator says. In the loop only, so that what is sent goes by one version."""
        self.in_turn, self.waits_for_all = policy_of(spec)
        if layout.version != self.plan.version:
            table = ParameterTable(specs.parameters_from_proto(spec))
            self._known[0] = (Plan(layout, table.specs), table)

    @property
    def shards(self) -> range:
        return range(len(self._targets))

    async def load(self, views: Mapping[int, Array], *, extension: str = "") -> None:
        """Give every shard its initial parameters, or those of an extension."""
        header = shard_pb2.LoadParametersHeader(run=self.run, extension=extension)
        raw = wire.encode_header(shard_pb2.LoadParametersRequest, header)
        await together(self._load(shard, raw, views) for shard in self.shards)

    async def _load(self, shard: int, header: bytes, views: Mapping[int, Array]) -> None:
        await self.give("LoadParameters", shard, header, self.plan.pushes(views)[shard], views)

    async def give(
        self,
        method: Literal["LoadParameters", "StageState"],
        shard: int,
        header: bytes,
        push: ShardPush,
        views: Mapping[int, Array],
    ) -> None:
        """A stream to one shard that may be sent again from its beginning, sent until it is taken."""
        patience = self._patience(method, shard)
        while True:
            patience.begin()
            try:
                calls = self._calls(shard)
                call_method = calls.load if method == "LoadParameters" else calls.stage
                await self._send(call_method, header, push.messages(views), push.payload_bytes)
                return
            except grpc.RpcError as error:
                await self._wait(shard, patience, from_rpc_error(error, target=self._targets[shard]))

    async def push(
        self, shard: int, header: shard_pb2.PushHeader, push: ShardPush, views: Mapping[int, Array]
    ) -> shard_pb2.PushResponse:
        """One contribution to one shard, sent until there is a receipt. Aborted of a reason in OVER is raised."""
        raw = wire.encode_header(shard_pb2.PushRequest, header)
        patience = self._patience("Push", shard)
        for tries in count(1):
            patience.begin()
            link = self._link(shard, push.payload_bytes)
            messages = link.messages(push, views) if link else push.messages(views, self.gradients)
            try:
                receipt: shard_pb2.PushResponse = await self._send(
                    self._calls(shard).push, raw, messages, push.payload_bytes
                )
                return _own(receipt, tries)
            except grpc.RpcError as error:
                await self._wait(shard, patience, from_rpc_error(error, target=self._targets[shard]))
        raise AssertionError  # count does not end

    async def push_and_pull(
        self,
        shard: int,
        header: shard_pb2.PushHeader,
        push: ShardPush,
        views: Mapping[int, Array],
        request: shard_pb2.PullRequest,
        picture: Picture,
        regions: Sequence[Array],
        on_header: OnHeader,
    ) -> tuple[shard_pb2.PushResponse, shard_pb2.PullHeader | None]:
        """Both at once, for little. The arguments are those of `push` and `pull`; without a header: pull."""
        _ask_for(request, shard, picture)
        request.encoding = self.parameters
        own = wire.encode_header(shard_pb2.PushRequest, header)
        raw = at_once.encode_request((own, *push.messages(views, self.gradients)), request)
        patience = self._patience("PushAndPull", shard)
        for tries in count(1):
            patience.begin()
            try:
                # The one may wait, and then the other.
                timeout = self.session.bulk_timeout(len(raw)) + WAIT_S
                answer = await self.kept.push_and_pull(shard, self._calls(shard), raw, timeout)
            except grpc.RpcError as error:
                await self._wait(shard, patience, from_rpc_error(error, target=self._targets[shard]))
                continue
            pulled = at_once.receive(answer, on_header, partial(picture.receiver, shard, regions))
            return _own(answer.receipt, tries), pulled
        raise AssertionError  # count does not end

    async def pull(
        self,
        shard: int,
        request: shard_pb2.PullRequest,
        picture: Picture | StatePicture,
        regions: Sequence[Array],
        on_header: OnHeader,
        *,
        again: bool = True,
    ) -> shard_pb2.PullHeader:
        """One version of what a shard holds, written into regions.

        Args:
            shard: which.
            request: its ranges are filled in here.
            picture: what is wanted.
            regions: where it goes.
            on_header: called before anything is written; may raise.
            again: if any version will do and the one that was read is gone, read the one that is there now.

        Raises:
            Aborted: of a reason in OVER.
        """
        _ask_for(request, shard, picture)
        again = again and not (request.HasField("round") or request.HasField("step"))
        patience = self._patience("Pull", shard)
        while True:
            patience.begin()
            try:
                return await self._receive(shard, request, picture, regions, on_header, patience)
            except (grpc.RpcError, Aborted) as error:
                failure = error if isinstance(error, Aborted) else from_rpc_error(error, target=self._targets[shard])
                if failure.reason == "VERSION_PASSED" and again:
                    # Too slow a reader of whatever was there: the version that is there now is as good.
                    await asyncio.sleep(patience.pause(failure))
                else:
                    await self._wait(shard, patience, failure)

    async def peek(self, shard: int, request: shard_pb2.PullRequest) -> shard_pb2.PullHeader:
        """Only the header of a pull: how a round ended."""
        slices = self.plan.shards[shard]
        request.ClearField("ranges")
        request.layout_version = self.plan.version
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
                await self._wait(shard, patience, from_rpc_error(error, target=self._targets[shard]))
            finally:
                call.cancel()

    def _link(self, shard: int, size: int) -> Link | None:
        """What a shard and this worker share, if so many bytes are worth it."""
        return self.sharing.link(shard, self.plan) if self.sharing and size >= SHARED_BYTES_MIN else None

    async def _send(self, call_method: Any, header: bytes, messages: Iterable[bytes], size: int) -> Any:
        """Write a stream and read its answer, which may come before all is written.

        Args:
            messages: after the header; made one by one as they are sent.
            size: bytes of payload.
        """
        call = call_method(timeout=self.session.bulk_timeout(size))
        try:
            try:
                await call.write(header)
                for message in messages:
                    await call.write(message)
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
        picture: Picture | StatePicture,
        regions: Sequence[Array],
        on_header: OnHeader,
        patience: Patience,
    ) -> shard_pb2.PullHeader:
        size = picture.payload_bytes(shard)
        link = self._link(shard, size) if isinstance(picture, Picture) and not request.averaged else None
        request.shared, request.in_place = link is not None, link is not None and isinstance(picture, ViewPicture)
        request.encoding = "" if request.shared or request.state or request.averaged else self.parameters
        call = self._calls(shard).pull(request, timeout=self.session.bulk_timeout(size))
        try:
            header = _header(await call.read())
            patience.alive()
            on_header(header)
            receiver = receiver_of(picture, shard, regions, link, header)
            while (raw := await call.read()) is not grpc.aio.EOF:
                message = wire.decode_pull(raw)
                if isinstance(message, shard_pb2.SharedChunk) and link:
                    message = link.chunk(message)
                elif isinstance(message, shard_pb2.EncodedChunk):
                    message = encodings.decoded(message)
                elif isinstance(message, wire.Halves):
                    message = encodings.checked(message)
                if not isinstance(message, wire.Chunk | wire.Halves):
                    raise StepdError(f"shard {shard} sent a second header in one pull")
                receiver.take(message)
                if link and receiver.complete:
                    break  # the shard waits for us to have read
            if not receiver.complete:
                raise StepdError(f"shard {shard} ended a pull before its end")
            if link:
                link.check_version(header)
            return header
        finally:
            call.cancel()

    async def _wait(self, shard: int, patience: Patience, error: StepdError) -> None:
        """Pause before the next try; raise if there is none."""
        if self.sharing and error.reason == "NOT_SHARED":
            self.sharing.drop(shard)  # and send: at once, for nothing is wrong
            return
        if isinstance(error, Aborted) and error.reason in OVER:
            raise error
        if error.reason == "ROUND_PENDING":
            patience.alive()
            await asyncio.sleep(PAUSE_S_MIN)
            return
        await asyncio.sleep(patience.pause(error))
        if isinstance(error, Unavailable):
            # A shard that was started again may be elsewhere.
            for index, target in (await self.session.shard_targets()).items():
                if index < len(self._targets):
                    self._targets[index] = target

    def _calls(self, shard: int) -> Any:
        return self.session.shard(self._targets[shard])

    def _patience(self, method: str, shard: int) -> Patience:
        return self.session.patience(f"{method} of run {self.run!r} on shard {shard}", self._targets[shard])

    async def state(self) -> coordinator_pb2.RunState:
        """The run as the coordinator sees it."""
        answer: coordinator_pb2.GetRunResponse = await self.session.ask(
            "GetRun", coordinator_pb2.GetRunRequest(run=self.run)
        )
        self.learn(answer.run.spec, answer.layout)
        return answer.run

    async def pull_now(
        self,
        picture: Picture,
        regions: Sequence[Array],
        member: round_pb2.Member | None = None,
        *,
        after: int | None = None,
        averaged: bool = False,
    ) -> dict[int, shard_pb2.PullHeader]:
        """The parameters as they are, of one version on all shards; not before round `after` is decided.

        Gives the headers by shard.
        """
        plain = shard_pb2.PullRequest(run=self.run, member=member, round=after, averaged=averaged)
        return await self.pull_one_version(plain, picture, regions, ignore)

    async def pull_one_version(
        self, request: shard_pb2.PullRequest, picture: Picture, regions: Sequence[Array], on_header: OnHeader
    ) -> dict[int, shard_pb2.PullHeader]:
        """What all shards of a picture hold, of one version, while rounds go on."""
        patience = self.session.patience(f"reading one version of run {self.run!r}")

        def pull(shard: int, own: shard_pb2.PullRequest, on_header: OnHeader, *, again: bool) -> Headers:
            return self.pull(shard, own, picture, regions, on_header, again=again)

        return await one_version(pull, picture.shards, request, on_header, patience)

    async def pull_all(
        self, request: shard_pb2.PullRequest, picture: Picture, regions: Sequence[Array], on_header: OnHeader
    ) -> dict[int, shard_pb2.PullHeader]:
        """The same request to all shards of a picture at once."""

        def pull(shard: int) -> Any:
            return self.pull(shard, asking_for(request, None), picture, regions, on_header)

        return dict(zip(picture.shards, await together(pull(shard) for shard in picture.shards), strict=True))

    async def agree(
        self,
        headers: dict[int, shard_pb2.PullHeader],
        picture: Picture,
        regions: Sequence[Array],
        member: round_pb2.Member | None = None,
    ) -> dict[int, shard_pb2.PullHeader]:
        """Pull again if some shard gave an older version than others."""
        if len({header.step for header in headers.values()}) <= 1:
            return headers
        return await self.pull_now(picture, regions, member)


def _ask_for(request: shard_pb2.PullRequest, shard: int, picture: Picture | StatePicture) -> None:
    request.ClearField("ranges")
    request.ranges.extend(picture.ranges(shard))
    request.layout_version = picture.version


def _own(receipt: shard_pb2.PushResponse, tries: int) -> shard_pb2.PushResponse:
    if tries > 1 and receipt.status == shard_pb2.RECEIPT_STATUS_DUPLICATE:
        receipt.status = shard_pb2.RECEIPT_STATUS_ACCEPTED  # by a try whose answer was lost
    return receipt


def _header(raw: Any) -> shard_pb2.PullHeader:
    message = None if raw is grpc.aio.EOF else wire.decode_pull(raw)
    if not isinstance(message, shard_pb2.PullHeader):
        raise StepdError("a shard's pull did not begin with a header")
    return message
