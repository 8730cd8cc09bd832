"""A fleet whose processes a test kills, stops and starts: each role by itself, with a proxy before it if wanted.

What ends is started again at once at its old address, as a supervisor or a kubelet would, until `hold`.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import stepd
from stepd.targets import Target
from stepd_server.ports import HeldPort
from stepd_server.shard.journal import Field
from tests.faults.proxy import Network, Proxy
from tests.integration.servers import eventually
from tests.patience import PATIENCE_S

DOOMED = Path(__file__).with_name("doomed.py")


class Role:
    """A coordinator or a shard.

    Attributes:
        name: "coordinator", "shard-1".
        pid: of the present process.
        deaths: how often a process of it has ended.
        proxy: before it, if the fleet has proxies.
    """

    def __init__(self, name: str, folder: Path, data_dir: Path, arguments: Sequence[str], proxy: Proxy | None) -> None:
        self.name = name
        self.data_dir = data_dir
        self.deaths = 0
        self.proxy = proxy
        self.log = folder / f"{name}.log"
        self._order = folder / f"{name}.order"
        self._arguments = arguments
        self._port = HeldPort(Target("127.0.0.1", 0))
        self._wanted = True
        self._over = False
        self._changed = threading.Condition()
        self._process: subprocess.Popen[str] | None = None
        self._started = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name=f"keeper of {name}", daemon=True)

    def __repr__(self) -> str:
        return f"{self.name} ({self.deaths} deaths)"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def target(self) -> str:
        """Where it listens itself, whatever stands before it."""
        return str(self._port.target)

    @property
    def up(self) -> bool:
        """Whether its present process listens."""
        return self._started.is_set()

    def begin(self) -> None:
        self._keeper.start()

    def await_up(self) -> None:
        assert self._started.wait(PATIENCE_S), f"{self.name} does not listen; its log ends with\n{self.tail()}"

    def signal(self, number: signal.Signals) -> None:
        with self._changed:
            if self._process is not None and self._process.poll() is None:
                self._process.send_signal(number)

    def kill(self) -> None:
        """`kill -9`, and wait until it has ended."""
        before = self.deaths
        self.signal(signal.SIGKILL)
        with self._changed:
            assert self._changed.wait_for(lambda: self.deaths > before, PATIENCE_S)

    def hold(self) -> None:
        """Do not start it again until `release`."""
        self._wanted = False

    def release(self) -> None:
        with self._changed:
            self._wanted = True
            self._changed.notify_all()

    def doom(self, functions: str, lines: int) -> None:
        """Order it to die by itself at so many lines of functions whose `path:name` matches.

        If it does not run, it may die of it while it starts.
        """
        self._order.with_suffix(".new").write_text(f"{lines} {functions}")
        self._order.with_suffix(".done").unlink(missing_ok=True)
        self._order.with_suffix(".new").rename(self._order)
        self.signal(signal.SIGUSR1)

    @property
    def doomed(self) -> bool:
        """Whether an order to die has yet to be carried out."""
        return self._order.exists()

    @property
    def died_at(self) -> str | None:
        """Where the last doomed process died; None if it lives."""
        try:
            return self._order.with_suffix(".done").read_text()
        except FileNotFoundError:
            return None

    def pardon(self) -> None:
        """An order that has not been carried out is not for the next process."""
        self._order.unlink(missing_ok=True)

    def tail(self, lines: int = 30) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def end(self) -> None:
        """Ask the process to end; nothing is started any more. `await_end` waits for it."""
        self._wanted = False
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)

    def await_end(self) -> None:
        with self._changed:
            process = self._process
        if process is not None:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
        with self._changed:
            self._over = True
            self._changed.notify_all()
        self._keeper.join(PATIENCE_S)
        self._port.close()

    def _keep(self) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("STEPD_")}
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted or self._over)
                if self._over:
                    return
                with self.log.open("a") as log:
                    self._process = subprocess.Popen(
                        [
                            *(sys.executable, "-P", str(DOOMED), *self._arguments),
                            *(f"--listen={self.target}", f"--data-dir={self.data_dir}"),
                            *("--json", "--lifeline"),
                        ],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=log,
                        text=True,
                        env={**clean, "STEPD_LOG": "info", "FAULTS_ORDER": str(self._order)},
                        process_group=0,
                    )
            self._follow(self._process)

    def _follow(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        assert process.stdin is not None
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "listening":
                if self.proxy is not None:
                    self.proxy.stand_before(event["target"])
                self._started.set()
        process.wait()
        process.stdin.close()
        process.stdout.close()
        with self._changed:
            self._started.clear()
            self.deaths += 1
            self._changed.notify_all()
        time.sleep(0.05)  # one that cannot start must not fill the log


class Fleet:
    """A coordinator and shards; a context manager.

    Attributes:
        target: for clients; of the proxy, if there is one.
    """

    def __init__(
        self, folder: Path, shards: int, network: Network | None = None, data_dirs: dict[str, Path] | None = None
    ) -> None:
        """
        Args:
            folder: for logs, orders and data.
            shards: how many.
            network: puts a proxy before every role.
            data_dirs: by role, for those whose data lie elsewhere.
        """
        self._folder = folder
        self._network = network
        self._data_dirs = data_dirs or {}
        self.coordinator = self._role("coordinator", "coordinator", f"--shards={shards}")
        self.coordinator.begin()
        self.coordinator.await_up()
        proxy = self.coordinator.proxy
        self.target = self.coordinator.target if proxy is None else proxy.target
        self.shards = [self._shard(index) for index in range(shards)]
        for shard in self.shards:
            shard.begin()
        for shard in self.shards:
            shard.await_up()
        self._client = stepd.connect(self.target, timeout=5, retry_for=PATIENCE_S)
        try:
            self.await_ready()
        except BaseException:
            self.stop()
            raise

    def _shard(self, index: int) -> Role:
        return self._role(f"shard-{index}", "shard", f"--index={index}", f"--coordinator={self.target}")

    def _role(self, name: str, *arguments: str) -> Role:
        proxy = None if self._network is None else self._network.proxy()
        if proxy is not None and name != "coordinator":
            arguments = (*arguments, f"--advertise={proxy.target}")
        data_dir = self._data_dirs.get(name, self._folder)
        return Role(name, self._folder, data_dir, arguments, proxy)

    @property
    def roles(self) -> list[Role]:
        return [self.coordinator, *self.shards]

    def is_ready(self) -> bool:
        """Whether the coordinator knows every shard's present process."""
        if not all(role.up for role in self.roles):
            return False
        here = self._client.fleet().shards
        return all(info.ready and info.pid == shard.pid for info, shard in zip(here, self.shards, strict=True))

    def await_ready(self) -> None:
        eventually(self.is_ready, "all shards are registered")

    def heal(self) -> None:
        """Every role runs, every link is fine."""
        for role in self.roles:
            if role.proxy is not None:
                role.proxy.clear()
            role.pardon()
            role.signal(signal.SIGCONT)
            role.release()
        self.await_ready()

    def logs(self) -> str:
        return "\n".join(f"--- {role}\n{role.tail()}" for role in self.roles)

    def stop(self) -> None:
        self._client.close()
        for role in self.roles:
            role.end()
        for role in self.roles:
            role.await_end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


class Journal:
    """The journal of a run on a shard, read where it is mapped while the shard writes it."""

    def __init__(self, shard: Role, run: str) -> None:
        with (shard.data_dir / shard.name / "runs" / run / "journal").open("rb") as file:
            self._view = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)).cast("q")

    @property
    def round(self) -> int:
        return self._view[Field.ROUND]

    @property
    def step(self) -> int:
        return self._view[Field.STEP]

    @property
    def applies(self) -> bool:
        """Whether a step is under way: what a dead shard has then is torn until it is finished."""
        return self._view[Field.INTENT] > self._view[Field.ROUND]
