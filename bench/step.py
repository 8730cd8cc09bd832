"""How long a step takes, beside what carries it and beside the plain way.

    python bench/step.py [--steps 15] [--json]

25M float32 parameters (100 MB) in 44 tensors, AdamW, clip by the global norm, W workers and S shards, every worker and
server a process of its own. In the same run:

(a) bare:   the same bytes over bare gRPC streams, 1 MiB raw messages there and back, W clients and S servers that do
            nothing with them;
(b) plain:  a server as one writes it in an afternoon: a message for each tensor, gradients kept until all are in, the
            update as NumPy expressions over whole tensors;
update:     stepd's update of one shard's piece by NumPy, alone in this process.

It says whether llvmlite (stepd[fast]) is there, which stepd then uses; STEPD_KERNELS=numpy does without.

The bar: a step takes at most 1.6 * bare + update, and at most half of plain.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import AsyncIterator, Callable
from concurrent import futures
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from threading import Condition
from typing import Any

import grpc
import grpc.aio
import numpy as np
from google.protobuf.any_pb2 import Any as Tensor  # type_url: the tensor's name; value: its bytes

import stepd
from stepd.limits import BLOCK_ELEMENTS, MIB
from stepd.memory import tune_malloc
from stepd.rules import Block, Moment
from stepd_server.kernels.compiled import available

TOPOLOGIES = ((1, 1), (2, 1), (2, 2))
WARM_UP = 3
LAYER = {"qkv": (512, 1536), "out": (512, 512), "up": (512, 2048), "down": (2048, 512), "ln": (2, 512), "up_b": (2048,)}
SHAPES = {"embedding": (6400, 512), "head_b": (512,)} | {
    f"layer.{i}.{name}": shape for i in range(7) for name, shape in LAYER.items()
}
ELEMENTS = sum(int(np.prod(shape)) for shape in SHAPES.values())
RATE, DECAY, CLIP = 1e-3, 0.01, 1.0


def gradients(rank: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rank)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}


@dataclass(frozen=True)
class Row:
    """Seconds, median over steps."""

    workers: int
    shards: int
    stepd: float
    bare: float
    plain: float
    update: float

    @property
    def limit(self) -> float:
        return 1.6 * self.bare + self.update


# --- stepd ------------------------------------------------------------------------------------------------------------


def stepd_worker(target: str, rank: int, workers: int, steps: int, out: Connection) -> None:
    tune_malloc()
    params = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    grads = gradients(rank)
    with stepd.connect(target, transport="grpc") as client:
        run = client.create_run(
            "bench",
            params,
            optimizer=stepd.AdamW(lr=RATE, weight_decay=DECAY),
            clip=stepd.ClipNorm(CLIP),
            sync=stepd.Sync(workers=workers),
            exist_ok=True,
        )
        with run.join(rank=rank) as worker:
            out.send(time_steps(steps, lambda: worker.step(grads)))


def time_stepd(workers: int, shards: int, steps: int) -> float:
    with stepd.local(shards=shards) as fleet:
        return run_workers(stepd_worker, (fleet.target,), workers, steps)


# --- (a) bare streams -------------------------------------------------------------------------------------------------


def bare_server(out: Connection, size: int) -> None:
    tune_malloc()
    content = memoryview(bytes(size))

    async def push(stream: AsyncIterator[bytes], _: Any) -> bytes:
        async for _message in stream:
            pass
        return b""

    async def pull(_request: bytes, _: Any) -> AsyncIterator[bytes]:
        for at in range(0, size, MIB):
            yield bytes(content[at : at + MIB])

    async def serve() -> None:
        server = grpc.aio.server()
        handlers = {
            "Push": grpc.stream_unary_rpc_method_handler(push),
            "Pull": grpc.unary_stream_rpc_method_handler(pull),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Bare", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        out.send(f"127.0.0.1:{port}")
        await server.wait_for_termination()

    asyncio.run(serve())


def bare_worker(targets: list[str], rank: int, workers: int, steps: int, out: Connection) -> None:
    del rank, workers
    tune_malloc()
    size = 4 * ELEMENTS // len(targets)
    source, sink = memoryview(bytes(size)), memoryview(bytearray(size))

    async def one(channel: grpc.aio.Channel) -> None:
        push = channel.stream_unary("/Bare/Push")()
        for at in range(0, size, MIB):
            await push.write(bytes(source[at : at + MIB]))
        await push.done_writing()
        await push
        at = 0
        async for message in channel.unary_stream("/Bare/Pull")(b""):
            sink[at : at + len(message)] = message
            at += len(message)

    async def run() -> list[float]:
        channels = [grpc.aio.insecure_channel(target) for target in targets]
        times = []
        for _ in range(steps + WARM_UP):
            begin = time.perf_counter()
            await asyncio.gather(*(one(channel) for channel in channels))
            times.append(time.perf_counter() - begin)
        return times[WARM_UP:]

    out.send(asyncio.run(run()))


def time_bare(workers: int, shards: int, steps: int) -> float:
    with servers(bare_server, shards, (4 * ELEMENTS // shards,)) as targets:
        return run_workers(bare_worker, (targets,), workers, steps)


# --- (b) the plain way ------------------------------------------------------------------------------------------------


class PlainServer:
    """AdamW on whole tensors; one message for each. Holds every worker's gradient until all are in."""

    def __init__(self, workers: int) -> None:
        self.params = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
        self.m = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
        self.v = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
        self.received: dict[str, list[np.ndarray]] = {}
        self.workers, self.t, self.done = workers, 0, Condition()

    def push(self, tensor: Tensor, _: Any) -> Tensor:
        gradient = np.frombuffer(tensor.value, np.float32).reshape(SHAPES[tensor.type_url])
        with self.done:
            self.received.setdefault(tensor.type_url, []).append(gradient)
            if all(len(self.received.get(name, ())) == self.workers for name in SHAPES):
                self.update({name: sum(g) / self.workers for name, g in self.received.items()})
                self.received, self.t = {}, self.t + 1
                self.done.notify_all()
        return Tensor()

    def update(self, grads: dict[str, Any]) -> None:
        norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in grads.values()))
        t, scale = self.t + 1, np.float32(min(1.0, CLIP / (norm + 1e-6)))
        for name, g in grads.items():
            clipped = g * scale
            self.m[name] = 0.9 * self.m[name] + 0.1 * clipped
            self.v[name] = 0.999 * self.v[name] + 0.001 * clipped**2
            m, v = self.m[name] / (1 - 0.9**t), self.v[name] / (1 - 0.999**t)
            self.params[name] = self.params[name] * (1 - RATE * DECAY) - RATE * m / (np.sqrt(v) + 1e-8)

    def pull(self, request: Tensor, _: Any) -> Tensor:
        with self.done:
            self.done.wait_for(lambda: self.t >= int(request.value))
        return Tensor(value=self.params[request.type_url].tobytes())


NO_LIMIT = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


def plain_server(out: Connection, workers: int) -> None:
    plain = PlainServer(workers)
    server = grpc.server(futures.ThreadPoolExecutor(8), options=NO_LIMIT)
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(method, Tensor.FromString, Tensor.SerializeToString)
        for name, method in (("Push", plain.push), ("Pull", plain.pull))
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Plain", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    out.send(f"127.0.0.1:{port}")
    server.wait_for_termination()


def plain_worker(targets: list[str], rank: int, workers: int, steps: int, out: Connection) -> None:
    del workers
    grads = gradients(rank)
    with grpc.insecure_channel(targets[0], options=NO_LIMIT) as channel:
        push, pull = (
            channel.unary_unary(f"/Plain/{name}", Tensor.SerializeToString, Tensor.FromString)
            for name in ("Push", "Pull")
        )
        done = 0

        def step() -> None:
            nonlocal done
            done += 1
            for name, gradient in grads.items():
                push(Tensor(type_url=name, value=gradient.tobytes()))
            for name, shape in SHAPES.items():
                answer = pull(Tensor(type_url=name, value=str(done).encode()))
                np.frombuffer(answer.value, np.float32).reshape(shape).copy()

        out.send(time_steps(steps, step))


def time_plain(workers: int, steps: int) -> float:
    with servers(plain_server, 1, (workers,)) as targets:
        return run_workers(plain_worker, (targets,), workers, steps)


# --- The update alone -------------------------------------------------------------------------------------------------


def time_update(shards: int, steps: int) -> float:
    """stepd's AdamW on one shard's piece, by blocks, in this process."""
    rule, size = stepd.AdamW(lr=RATE, weight_decay=DECAY), ELEMENTS // shards
    p, g, m, v = (np.full(size, 0.5, np.float32) for _ in range(4))
    scratch = np.empty((2, BLOCK_ELEMENTS), np.float32)

    def update() -> None:
        for at in range(0, size, BLOCK_ELEMENTS):
            end = min(at + BLOCK_ELEMENTS, size)
            gradient = np.multiply(g[at:end], 0.9, out=scratch[0, : end - at])
            block = Block(p[at:end], gradient, (m[at:end], v[at:end]), (scratch[1, : end - at],))
            rule.update(block, Moment(1, RATE))

    return statistics.median(time_steps(steps, update))


# --- Processes --------------------------------------------------------------------------------------------------------

SPAWN = multiprocessing.get_context("spawn")


def time_steps(steps: int, step: Callable[[], object]) -> list[float]:
    times = []
    for _ in range(steps + WARM_UP):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    return times[WARM_UP:]


class servers:  # noqa: N801 - used as a context manager function
    """Processes that say where they listen, ended by their handle."""

    def __init__(self, program: Callable[..., None], count: int, args: tuple[Any, ...]) -> None:
        self.started = [start(program, (), args, sender_first=True) for _ in range(count)]

    def __enter__(self) -> list[str]:
        return [receiver.recv() for _, receiver in self.started]

    def __exit__(self, *_: object) -> None:
        for process, _ in self.started:
            process.terminate()
            process.join()


def start(
    program: Callable[..., None], before: tuple[Any, ...], after: tuple[Any, ...] = (), *, sender_first: bool = False
) -> Any:
    receiver, sender = SPAWN.Pipe(duplex=False)
    args = (sender, *after) if sender_first else (*before, sender)
    process = SPAWN.Process(target=program, args=args, daemon=True)
    process.start()
    sender.close()
    return process, receiver


def run_workers(program: Callable[..., None], args: tuple[Any, ...], workers: int, steps: int) -> float:
    """Median over all steps of all workers."""
    started = [start(program, (*args, rank, workers, steps)) for rank in range(workers)]
    times = [t for _, receiver in started for t in receiver.recv()]
    for process, _ in started:
        process.join()
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tune_malloc()
    rows = []
    if not options.json:
        print(f"{ELEMENTS:,} parameters, {4 * ELEMENTS / 1e6:.0f} MB; seconds, median of {options.steps} steps")
        print(
            f"stepd's loops: {'compiled (llvmlite)' if available() else 'NumPy'}; cores: {len(os.sched_getaffinity(0))}"
        )
        print("         stepd  (a) bare  (b) plain  update | stepd/(a)  (b)/stepd  bar: 1.6(a)+update, (b)/2")
    for workers, shards in TOPOLOGIES:
        row = Row(
            workers,
            shards,
            stepd=time_stepd(workers, shards, options.steps),
            bare=time_bare(workers, shards, options.steps),
            plain=time_plain(workers, max(3, options.steps // 3)),
            update=time_update(shards, options.steps),
        )
        rows.append(row)
        if not options.json:
            kept = "kept" if row.stepd <= row.limit and row.stepd <= row.plain / 2 else "MISSED"
            print(
                f"W{workers}S{shards}    {row.stepd:6.3f}    {row.bare:6.3f}     {row.plain:6.3f}  {row.update:6.3f} |"
                f"      {row.stepd / row.bare:4.2f}      {row.plain / row.stepd:5.1f}"
                f"  {row.limit:.3f}, {row.plain / 2:.3f} {kept}",
                flush=True,
            )
    if options.json:
        print(json.dumps([asdict(row) | {"limit": row.limit, "compiled": available()} for row in rows]))


if __name__ == "__main__":
    main()
