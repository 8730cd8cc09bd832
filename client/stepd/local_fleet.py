"""A fleet of real server processes on this machine, for as long as a `with` block lasts."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from stepd.errors import InvalidArgument, StepdError, Unavailable
from stepd.limits import DRAIN_S, SHARDS_MAX
from stepd.settings import Unfit, fit, refuse

# The supervisor gives up by itself before this and says why.
START_S: Final = 150.0
# Its processes get DRAIN_S and some more; then it is ended, and they end with their lifelines.
STOP_S: Final = DRAIN_S + 12.0
POLL_S: Final = 0.02
LINES_SHOWN: Final = 20


@dataclass(frozen=True)
class ServerProcess:
    """A server of the fleet.

    Attributes:
        pid: of its process.
        target: where it listens.
    """

    pid: int
    target: str


@dataclass(frozen=True)
class ShardProcess(ServerProcess):
    """A shard.

    Attributes:
        index: its place in the layout, from 0.
    """

    index: int


class LocalFleet:
    """A coordinator and shards under a supervisor that starts again what dies. A context manager.

    Ends with `stop`, with its `with` block, or with this process, however that ends.

    Attributes:
        target: for `stepd.connect`.
    """

    def __init__(self, command: list[str], environ: Mapping[str, str], folder: Path | None) -> None:
        """Not to be called: `stepd.local` makes fleets.

        Args:
            command: the supervisor's.
            environ: of it and all servers.
            folder: a temporary one with what the servers read; removed at the end.
        """
        self._owner = os.getpid()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        # Files without names, which nobody has to remove: a pipe that is not read holds its writer up.
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (closed by stop)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by stop)
        try:
            # Ctrl-C is this process's to handle: the fleet is needed until the `with` block has ended.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=self._output,
                stderr=self._errors,
                env=environ,
                start_new_session=True,
            )
            atexit.register(self.stop)
            started = self._await_start()
        except BaseException:
            self.stop()
            raise
        self.target: str = started["target"]
        self._data_dir = Path(started["data_dir"])

    def __repr__(self) -> str:
        return f"LocalFleet({self.target!r})"

    @property
    def shards(self) -> list[ShardProcess]:
        """The shards as they are now: one that was started again has another pid."""
        return [ShardProcess(shard["pid"], shard["target"], shard["index"]) for shard in self._state()["shards"]]

    @property
    def coordinator(self) -> ServerProcess:
        """The coordinator as it is now."""
        state = self._state()["coordinator"]
        return ServerProcess(state["pid"], state["target"])

    def stop(self) -> None:
        """End all processes of the fleet. May be repeated; returns when none is left."""
        if os.getpid() != self._owner:
            return  # a fork: the fleet is not its own
        atexit.unregister(self.stop)
        process, self._process = self._process, None
        if process is not None:
            _end(process)
        self._output.close()
        self._errors.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _await_start(self) -> dict[str, Any]:
        """The supervisor's message that all is ready; Unavailable, with its last lines, if it does not come."""
        assert self._process is not None
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            code = self._process.poll()
            for line in _content(self._output).splitlines(keepends=True):
                if line.endswith(b"\n"):
                    event: dict[str, Any] = json.loads(line)
                    if event.get("event") == "listening" and event.get("role") == "fleet":
                        return event
            if code is not None:
                raise self._failed(f"ended with exit code {code}")
            time.sleep(POLL_S)
        raise self._failed(f"is not ready after {START_S:.0f} s")

    def _failed(self, what: str) -> StepdError:
        lines = _content(self._errors).decode(errors="replace").splitlines()[-LINES_SHOWN:]
        said = "\n".join(lines) or "(it said nothing)"
        return Unavailable(f"local fleet: the supervisor {what}; its last lines:\n{said}", stderr=said)

    def _state(self) -> dict[str, Any]:
        if self._process is None:
            raise Unavailable("this local fleet is stopped")
        try:
            state: dict[str, Any] = json.loads((self._data_dir / "fleet.json").read_bytes())
        except (OSError, ValueError) as error:
            raise self._failed(f"has no readable fleet.json ({error})") from error
        return state


def local(
    shards: int = 1,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    checkpoints: str | None = None,
    token: str | None = None,
    env: Mapping[str, str] | None = None,
) -> LocalFleet:
    """Start a fleet of server processes on this machine and wait until it is ready.

    Args:
        shards: how many shard processes; at best not more than there are cores.
        data_dir: folder for what survives a restart. None: a temporary one, in memory if the system has a place.
        checkpoints: not in this version.
        token: what clients must show; None lets every user of this machine connect.
        env: environment variables for the servers, besides those of this process.
    """
    try:
        count = fit(int, shards)
    except Unfit:
        count = 0
    if not isinstance(count, int) or not 1 <= count <= SHARDS_MAX:
        refuse("local", "shards", shards, f"an integer from 1 to {SHARDS_MAX}")
    if checkpoints is not None:
        refuse("local", "checkpoints", checkpoints, "None: this version has no checkpoints")
    folder = None if token is None else Path(tempfile.mkdtemp(prefix="stepd-local-"))
    try:
        flags = ["--listen=127.0.0.1:0", f"--shards={count}", "--json", "--lifeline"]
        if data_dir is not None:
            flags.append(f"--data-dir={Path(data_dir).absolute()}")
        if folder is not None and token is not None:
            flags.append(f"--tokens={_token_file(folder, token)}")
        # -P: a module of the user's in the current folder must not take the place of one of the servers'.
        command = [sys.executable, "-P", "-m", "stepd_server", "serve", *flags]
        # Flags of servers that this process was itself configured with are not meant for these.
        environ = {name: value for name, value in os.environ.items() if not name.startswith("STEPD_SERVER_")}
        return LocalFleet(command, environ | _import_path() | dict(env or {}), folder)
    except BaseException:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _content(file: IO[bytes]) -> bytes:
    """All of a file, without moving the place at which its writer is."""
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0)


def _token_file(folder: Path, token: str) -> Path:
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        # Not with its value: errors end up in logs.
        raise InvalidArgument("local: token must be printable ASCII characters without spaces", field="token")
    path = folder / "tokens"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(f"user {token}\n")
    return path


def _import_path() -> dict[str, str]:
    """Where this process found stepd, for servers that would not: it may have been put on sys.path by hand."""
    place = str(Path(__file__).resolve().parent.parent)
    known = os.environ.get("PYTHONPATH")
    if place in (known or "").split(os.pathsep):
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, (known, place)))}


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the supervisor by its lifeline or, if that is of no use, by force: its servers have lifelines too."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
