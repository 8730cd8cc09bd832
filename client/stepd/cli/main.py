"""Which command, and how a failure looks."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

from stepd import __version__
from stepd.cli import demo, status
from stepd.cli.output import clean
from stepd.errors import StepdError

DONE: Final = 0
FAILED: Final = 1
INTERRUPTED: Final = 128 + signal.SIGINT

# Commands of stepd_server with their line in the help.
SERVER_COMMANDS: Final = {
    "serve": "a whole fleet on this machine, under a supervisor",
    "coordinator": "the coordinator of a fleet alone (Kubernetes)",
    "shard": "one shard of a fleet alone (Kubernetes)",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the answer is the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in SERVER_COMMANDS:
        hand_over(words)
    try:
        arguments = _parser().parse_args(words)
    except SystemExit as done:  # argparse has said what there is to say
        return done.code if isinstance(done.code, int) else DONE
    # Ends as with Ctrl-C: through every `with`, so that no process is left behind.
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code: int = arguments.command(arguments)
        sys.stdout.flush()
    except StepdError as error:
        return _fail(f"{error.reason}: {error}")
    except BrokenPipeError:
        # Whoever read our output has seen enough (`stepd runs | head`). Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def hand_over(words: Sequence[str]) -> NoReturn:
    """Become the server: the same process, so that signals and exit codes are the server's own.

    With -P, so that a file of the user's folder is not imported in place of a module of the server's.
    """
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", "stepd_server", *words])  # noqa: S606 - no shell is what we want


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stepd",
        allow_abbrev=False,  # a script must not break when a later version has a flag that begins alike
        description="A parameter server over gRPC: parameters and optimizer state on servers, gradients from workers.",
    )
    parser.add_argument("--version", action="version", version=f"stepd {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, line in SERVER_COMMANDS.items():
        commands.add_parser(name, help=line, add_help=False)
    status.add_commands(commands)
    demo.add_command(commands)
    return parser


def _fail(line: str) -> int:
    # One line, also of an error that quotes a server's last lines.
    sys.stderr.write(f"stepd: {clean(' | '.join(line.splitlines()))}\n")
    return FAILED


def _terminate(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)
