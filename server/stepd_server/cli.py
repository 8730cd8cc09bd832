"""The command line of the servers. Every flag can also be given as an environment variable.

`--data-dir` is STEPD_SERVER_DATA_DIR and so on: in Kubernetes a role is configured by its pod, not by a command line.
A flag wins over its variable.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import re
import socket
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from stepd.errors import InvalidArgument
from stepd.limits import COMPUTE_THREADS_MAX, SHARDS_MAX
from stepd.memory import tune_malloc
from stepd.targets import Target, parse_target
from stepd.tls import TLS
from stepd_server.folders import held_shards
from stepd_server.logs import set_up_logging
from stepd_server.settings import (
    CannotStart,
    CoordinatorSettings,
    FleetSettings,
    Security,
    ShardSettings,
    check_exposure,
    cores,
)
from stepd_server.tokens import FLEET_TOKEN_VARIABLE, Tokens

__all__ = ["ENVIRONMENT_PREFIX", "build_parser", "main", "read_settings"]

ENVIRONMENT_PREFIX: Final = "STEPD_SERVER_"
DEFAULT_LISTEN: Final = "127.0.0.1:7070"

_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"", "0", "false", "no", "off"})

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one server until it is told to stop.

    Returns:
        The exit code: 0 stopped as asked, 1 could not start or failed, 2 wrong usage.
    """
    args = build_parser().parse_args(argv)
    set_up_logging(args.role if args.role != "shard" else f"shard {args.index}")
    tune_malloc()
    warn_of_unknown_variables(os.environ)
    try:
        settings = read_settings(args)
        return asyncio.run(_serve(settings))
    except CannotStart as error:
        if str(error):
            print(f"stepd {args.role}: {error}", file=sys.stderr)
        return error.exit_code
    except InvalidArgument as error:
        print(f"stepd {args.role}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _serve(settings: CoordinatorSettings | ShardSettings | FleetSettings) -> Coroutine[Any, Any, int]:
    """The server of these settings; imported here, for a supervisor needs neither gRPC nor NumPy."""
    if isinstance(settings, FleetSettings):
        from stepd_server.supervisor import run_fleet  # noqa: PLC0415

        return run_fleet(settings)
    from stepd_server.roles import run_coordinator, run_shard  # noqa: PLC0415

    return run_coordinator(settings) if isinstance(settings, CoordinatorSettings) else run_shard(settings)


def build_parser(environ: Mapping[str, str] = os.environ) -> argparse.ArgumentParser:
    """The parser of `python -m stepd_server`, with defaults from the environment."""
    parser = argparse.ArgumentParser(
        prog="stepd",
        description="Servers of stepd.",
        epilog=f"Every flag --some-flag can also be given as {ENVIRONMENT_PREFIX}SOME_FLAG.",
    )
    roles = parser.add_subparsers(dest="role", required=True, metavar="serve|coordinator|shard")

    serve = _Flags(
        roles.add_parser("serve", help="a whole fleet on this machine, under a supervisor", allow_abbrev=False), environ
    )
    serve.add("--listen", _target, "HOST:PORT", "where workers reach the coordinator", default=DEFAULT_LISTEN)
    serve.add(
        "--shards",
        _shard_count_or_auto,
        "N",
        "number of shard processes; 'auto': as many as --data-dir holds, or one for each core",
        default="1",
    )
    serve.add(
        "--advertise", str, "HOST", "the name under which other machines reach this one; if --listen is on all of them"
    )
    serve.add("--threads", _threads, "N", "threads that each shard computes with; without it, its share of the cores")
    _add_common(serve)

    coordinator = _Flags(
        roles.add_parser("coordinator", help="the coordinator of a fleet", allow_abbrev=False), environ
    )
    coordinator.add("--listen", _target, "HOST:PORT", "where workers and shards reach it", required=True)
    coordinator.add("--shards", _shard_count, "N", "number of shards that the fleet has", required=True)
    _add_common(coordinator)

    shard = _Flags(roles.add_parser("shard", help="one shard of a fleet", allow_abbrev=False), environ)
    shard.add("--coordinator", _target, "HOST:PORT", "where the coordinator is", required=True)
    shard.add(
        "--index",
        _index,
        "N",
        "which shard it is, from 0; 'hostname': the number at the host name's end",
        required=True,
    )
    shard.add("--listen", _target, "HOST:PORT", "where workers and the coordinator reach it", required=True)
    shard.add(
        "--advertise",
        _target,
        "HOST:PORT",
        "the address to give to them, if it is not that of --listen (port 0: the same port)",
    )
    shard.add("--threads", _threads, "N", "threads that it computes with; without it, one for each core")
    _add_common(shard)
    return parser


def _add_common(flags: _Flags) -> None:
    flags.add("--data-dir", Path, "DIR", "folder for what survives a restart of the process")
    flags.add("--tls-cert", Path, "FILE", "certificate (PEM); together with --tls-key")
    flags.add("--tls-key", Path, "FILE", "private key (PEM), readable by its owner only")
    flags.add(
        "--tls-ca", Path, "FILE", "authority of the fleet's certificates; clients must then show one of it as well"
    )
    flags.add("--tokens", Path, "FILE", "who may call: lines of 'user TOKEN' or 'fleet TOKEN'")
    flags.add("--health", _target, "HOST:PORT", "a further port for health checks alone, without TLS and tokens")
    flags.add("--metrics", _target, "HOST:PORT", "a further port for metrics (Prometheus), without TLS and tokens")
    flags.switch("--insecure", "listen beyond this machine even without TLS and tokens")
    flags.switch("--json", "print events as JSON")
    flags.switch("--lifeline", "end when standard input is closed, so that nothing outlives a killed parent")


class _Flags:
    """Adds flags with their environment variables to one parser."""

    def __init__(self, parser: argparse.ArgumentParser, environ: Mapping[str, str]) -> None:
        self._parser = parser
        self._environ = environ

    def add(
        self,
        flag: str,
        kind: Callable[[str], object],
        metavar: str,
        about: str,
        *,
        default: str | None = None,
        required: bool = False,
    ) -> None:
        # An empty variable is as good as none: that is how templates leave things out.
        given = self._environ.get(_variable(flag)) or default
        note = f" (default: {default})" if default else ""
        self._parser.add_argument(
            flag, type=kind, metavar=metavar, help=about + note, default=given, required=required and given is None
        )

    def switch(self, flag: str, about: str) -> None:
        text = self._environ.get(_variable(flag), "").lower()
        if text not in _TRUE | _FALSE:
            self._parser.error(f"{_variable(flag)}: expected true or false, got {text!r}")
        self._parser.add_argument(flag, action="store_true", help=about, default=text in _TRUE)


def _variable(flag: str) -> str:
    return ENVIRONMENT_PREFIX + flag.removeprefix("--").replace("-", "_").upper()


def warn_of_unknown_variables(environ: Mapping[str, str]) -> None:
    """A misspelt variable is otherwise silent. Only a warning: an orchestrator may define some under our prefix."""
    given = {name for name in environ if name.startswith(ENVIRONMENT_PREFIX)} - {FLEET_TOKEN_VARIABLE}
    if not given:
        return
    known = set[str]()
    for action in build_parser({})._actions:  # noqa: SLF001  (argparse has no public way to list flags)
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for role in action.choices.values():
                known.update(_variable(flag) for flag in role._option_string_actions)  # noqa: SLF001
    for name in sorted(given - known):
        logger.warning("ignoring the environment variable %s: there is no flag of that name", name)


def read_settings(args: argparse.Namespace) -> CoordinatorSettings | ShardSettings | FleetSettings:
    """What the flags come to. Raise InvalidArgument or CannotStart if they do not fit together."""
    tls = TLS(ca=args.tls_ca, cert=args.tls_cert, key=args.tls_key) if args.tls_cert or args.tls_key else None
    if args.tls_ca and tls is None:
        raise InvalidArgument("--tls-ca needs --tls-cert and --tls-key", expected="--tls-cert, --tls-key", given=None)
    fleet_token = os.environ.get(FLEET_TOKEN_VARIABLE)
    tokens = Tokens.load(args.tokens, fleet_token) if args.tokens else None
    security = Security(tls, tokens)
    check_exposure(args.listen, security, insecure=args.insecure)
    common: dict[str, Any] = {
        "listen": args.listen,
        "data_dir": args.data_dir,
        "health": args.health,
        "metrics": args.metrics,
        "security": security,
        "json": args.json,
        "lifeline": args.lifeline,
    }
    if args.role == "serve":
        return FleetSettings(
            shards=args.shards or held_shards(args.data_dir) or min(cores(), SHARDS_MAX),
            advertise=args.advertise,
            tokens_file=args.tokens and args.tokens.absolute(),
            insecure=args.insecure,
            threads=args.threads,
            **common,
        )
    if tokens is not None:
        tokens.require_fleet_token()
    if args.role == "coordinator":
        return CoordinatorSettings(shards=args.shards, **common)
    return ShardSettings(
        index=args.index, coordinator=args.coordinator, advertise=args.advertise, threads=args.threads, **common
    )


def _target(text: str) -> Target:
    try:
        return parse_target(text)
    except InvalidArgument as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _shard_count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= SHARDS_MAX:
        raise argparse.ArgumentTypeError(f"expected 1 to {SHARDS_MAX}, got {text!r}")
    return int(text)


def _threads(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= COMPUTE_THREADS_MAX:
        raise argparse.ArgumentTypeError(f"expected 1 to {COMPUTE_THREADS_MAX}, got {text!r}")
    return int(text)


def _shard_count_or_auto(text: str) -> int:
    """A number of shards; 0 for one that is to be found."""
    return 0 if text == "auto" else _shard_count(text)


def _index(text: str) -> int:
    if text == "hostname":
        name = socket.gethostname()
        ordinal = re.search(r"-(\d+)$", name.split(".")[0])
        if ordinal is None:
            raise argparse.ArgumentTypeError(f"the host name {name!r} does not end in '-' and a number")
        text = ordinal[1]
    if not text.isascii() or not text.isdigit() or int(text) >= SHARDS_MAX:
        raise argparse.ArgumentTypeError(f"expected 0 to {SHARDS_MAX - 1} or 'hostname', got {text!r}")
    return int(text)
