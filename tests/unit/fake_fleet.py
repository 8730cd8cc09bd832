"""A coordinator and shards that do what a test tells them, over real connections in the test's own process."""

# ruff: noqa: N802  (handlers have the names of the contract)

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import grpc
import numpy as np

from stepd import at_once, wire
from stepd.errors import Aborted, FailedPrecondition, StepdError
from stepd.policies import Sync
from stepd.rules import SGD
from stepd.specs import optimizer_to_proto, sync_to_proto
from stepd.status import to_status
from stepd.v1 import coordinator_pb2 as c
from stepd.v1 import coordinator_pb2_grpc, round_pb2, run_pb2, shard_pb2

SIZE = 10  # elements on each shard
MEMBER = round_pb2.Member(worker="ann", incarnation=7, rank=0)
# The same when it has its place back.
AGAIN = round_pb2.Member(worker="ann", incarnation=8, rank=0)

# What a shard says to a call: an answer, or an error.
Push = Callable[[shard_pb2.PushHeader], shard_pb2.PushResponse | StepdError]
Pull = Callable[[shard_pb2.PullRequest], tuple[shard_pb2.PullHeader, float] | StepdError]


def receipt(header: shard_pb2.PushHeader, status: int = shard_pb2.RECEIPT_STATUS_ACCEPTED) -> shard_pb2.PushResponse:
    return shard_pb2.PushResponse(status=status, id=header.id, step=0)


def decided(round_: int, outcome: int = round_pb2.OUTCOME_APPLIED, step: int | None = None) -> shard_pb2.PullHeader:
    """The header of parameters after a round in which the worker was, under whichever of its names."""
    decision = round_pb2.Decision(
        id=round_pb2.RoundId(round=round_),
        outcome=outcome,
        step=round_ + 1 if step is None else step,
        groups=[round_pb2.GroupRates(lr=0.5, clip_scale=1)],
        grad_norm=3.0,
        clip_scale=1.0,
        members=[MEMBER, AGAIN],
    )
    return shard_pb2.PullHeader(step=decision.step, round=round_ + 1, decision=decision)


def abort(context: grpc.ServicerContext, error: StepdError) -> NoReturn:
    code, message, trailing = to_status(error)
    context.set_trailing_metadata(trailing)
    context.abort(code, message)


class FakeShard:
    """Attributes:
    push: what to say to a contribution, asked when its header is here.
    hears_out: an error is said when all of a contribution is here. One that is said before can be lost on its way to
        somebody who is still sending.
    pull: what to say to a pull, and the value of every element.
    pushed: round, attempt and first element of each contribution that came in whole.
    pulled: the requests.
    open: calls that do both, which stay open.
    """

    def __init__(self) -> None:
        self.push: Push = receipt
        self.hears_out = False
        self.pull: Pull = lambda request: (decided(request.round), 0.0)
        self.pushed: list[tuple[int, int, float]] = []
        self.pulled: list[shard_pb2.PullRequest] = []
        self.open = 0

    def serve_push(self, stream: Iterator[bytes], context: Any) -> shard_pb2.PushResponse:
        header = wire.decode_push(next(stream))
        assert isinstance(header, shard_pb2.PushHeader)
        answer = self.push(header)
        if isinstance(answer, StepdError):
            for _ in stream if self.hears_out else ():
                pass
            abort(context, answer)
        assert isinstance(answer, shard_pb2.PushResponse)
        if answer.status == shard_pb2.RECEIPT_STATUS_DUPLICATE:
            return answer  # before the stream is read
        for raw in stream:
            chunk = wire.decode_push(raw)
            assert isinstance(chunk, wire.Chunk)
            first = float(np.frombuffer(chunk.data, np.float32)[0])
            self.pushed.append((header.id.round, header.id.attempt, first))
        return answer

    def serve_pull(self, request: shard_pb2.PullRequest, context: Any) -> Iterator[bytes]:
        self.pulled.append(request)
        yield from self.say(self.pull(request), context)

    def say(self, answer: tuple[shard_pb2.PullHeader, float] | StepdError, context: Any) -> Iterator[bytes]:
        if isinstance(answer, StepdError):
            abort(context, answer)
        assert isinstance(answer, tuple)
        yield wire.encode_header(shard_pb2.PullResponse, answer[0])
        data = np.full(SIZE, answer[1], np.float32)
        yield wire.encode_chunk(0, data.nbytes, [memoryview(data).cast("B")])

    def serve_push_and_pull(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        self.open += 1
        try:
            for raw in requests:
                yield self.push_and_pull(shard_pb2.PushAndPullRequest.FromString(raw), context)
        finally:
            self.open -= 1

    def push_and_pull(self, request: shard_pb2.PushAndPullRequest, context: Any) -> bytes:
        answer = self.serve_push((message.SerializeToString() for message in request.push), context)
        answered = self.pull(request.pull)
        self.pulled.append(request.pull)
        if isinstance(answered, Aborted) and answered.reason != "ROUND_RESTARTED":
            return at_once.encode_response(answer, [])
        return at_once.encode_response(answer, self.say(answered, context))

    def add_to(self, server: grpc.Server) -> None:
        handlers = {
            "PushAndPull": grpc.stream_stream_rpc_method_handler(self.serve_push_and_pull),
            "Push": grpc.stream_unary_rpc_method_handler(
                self.serve_push, response_serializer=shard_pb2.PushResponse.SerializeToString
            ),
            "Pull": grpc.unary_stream_rpc_method_handler(
                self.serve_pull, request_deserializer=shard_pb2.PullRequest.FromString
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("stepd.v1.Shard", handlers),))


class FakeFleet(coordinator_pb2_grpc.CoordinatorServicer):
    """Attributes:
    state: of the one run, which is named "run".
    now: the round that renewals tell of.
    renewals: the metrics of each.
    fail: the next calls to the coordinator get these errors.
    member: the one that there is.
    taken: nobody gets a place back.
    """

    def __init__(self, shards: int) -> None:
        self.shards = [FakeShard() for _ in range(shards)]
        self.now = round_pb2.RoundId()
        self.renewals: list[dict[str, float]] = []
        self.left: list[c.LeaveRunRequest] = []
        self.fail: list[StepdError] = []
        self.member = round_pb2.Member()
        self.taken = False
        self._servers: list[grpc.Server] = []
        self.target = self._start(self.add_to)
        targets = [self._start(shard.add_to) for shard in self.shards]
        group = run_pb2.GroupSpec(optimizer=optimizer_to_proto(SGD(lr=0.5)))
        size = SIZE * shards
        self.state = c.RunState(
            spec=run_pb2.RunSpec(
                name="run",
                parameters=[run_pb2.ParameterSpec(name="w", shape=[size], dtype=run_pb2.D_TYPE_FLOAT32)],
                groups=[group],
                sync=sync_to_proto(Sync()),
                on_nonfinite=run_pb2.NONFINITE_POLICY_SKIP,
                missing=run_pb2.MISSING_POLICY_SKIP,
            ),
            status=c.RUN_STATUS_TRAINING,
            rates=[0.5],
            workers=[c.WorkerState(member=MEMBER)],
        )
        self.layout = run_pb2.Layout(
            shards=[
                run_pb2.ShardLayout(slices=[run_pb2.Slice(parameter=0, start=i * SIZE, count=SIZE)], target=target)
                for i, target in enumerate(targets)
            ],
            block_elements=SIZE,
            dtype=run_pb2.D_TYPE_FLOAT32,
        )

    def add_to(self, server: grpc.Server) -> None:
        coordinator_pb2_grpc.add_CoordinatorServicer_to_server(self, server)

    def _start(self, add_to: Callable[[grpc.Server], None]) -> str:
        server = grpc.server(ThreadPoolExecutor(8))
        add_to(server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        self._servers.append(server)
        return f"127.0.0.1:{port}"

    def close(self) -> None:
        stopping = [server.stop(None) for server in self._servers]
        for stopped in stopping:
            stopped.wait()

    def _may_fail(self, context: Any) -> None:
        if self.fail:
            abort(context, self.fail.pop(0))

    def GetRun(self, request: c.GetRunRequest, context: Any) -> c.GetRunResponse:
        self._may_fail(context)
        return c.GetRunResponse(run=self.state, layout=self.layout)

    def JoinRun(self, request: c.JoinRunRequest, context: Any) -> c.JoinRunResponse:
        self._may_fail(context)
        member = MEMBER
        if request.HasField("again"):
            if self.taken:
                abort(context, FailedPrecondition("its place belongs to 'bob'", reason="NOT_A_MEMBER"))
            member = round_pb2.Member(worker="ann", incarnation=request.again.incarnation + 1, rank=0)
        self.member = self.state.workers[0].member
        self.member.CopyFrom(member)
        return c.JoinRunResponse(member=member, run=self.state, layout=self.layout)

    def RenewLease(self, request: c.RenewLeaseRequest, context: Any) -> c.RenewLeaseResponse:
        self._may_fail(context)
        if request.member != self.member:
            abort(context, FailedPrecondition("its lease has run out", reason="NOT_A_MEMBER"))
        self.renewals.append(dict(request.metrics))
        return c.RenewLeaseResponse(round=self.now)

    def LeaveRun(self, request: c.LeaveRunRequest, context: Any) -> c.LeaveRunResponse:
        self._may_fail(context)
        self.left.append(request)
        return c.LeaveRunResponse()

    def GetFleet(self, request: c.GetFleetRequest, context: Any) -> c.GetFleetResponse:
        states = [c.ShardState(index=i, target=shard.target) for i, shard in enumerate(self.layout.shards)]
        return c.GetFleetResponse(shards=states)
