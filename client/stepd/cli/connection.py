"""The flags that say which fleet, and the connection they lead to."""

from __future__ import annotations

import argparse
import os
from typing import Final

import stepd

# Where `stepd serve` listens unless told otherwise.
TARGET: Final = "127.0.0.1:7070"
# A person waits for the answer: a fleet that is down is reported soon.
ANSWER_S: Final = 10.0
RETRY_S: Final = 3.0


def add_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("fleet", "Each may also be given by the variable of the environment in brackets.")
    group.add_argument("--target", metavar="HOST:PORT", help=f"the coordinator [STEPD_TARGET] (default: {TARGET})")
    group.add_argument("--token", help="[STEPD_TOKEN], which unlike a flag no other user of the machine can see")
    group.add_argument("--ca", metavar="FILE", help="authority of the server's certificate [STEPD_CA]")
    group.add_argument("--cert", metavar="FILE", help="our own certificate [STEPD_CERT]")
    group.add_argument("--key", metavar="FILE", help="its key [STEPD_KEY]")


def connect(arguments: argparse.Namespace) -> stepd.Client:
    def given(name: str) -> str | None:
        flag: str | None = getattr(arguments, name)
        return flag or os.environ.get(f"STEPD_{name.upper()}") or None

    paths = {name: given(name) for name in ("ca", "cert", "key")}
    return stepd.connect(
        given("target") or TARGET,
        token=given("token"),
        tls=stepd.TLS(**paths) if any(paths.values()) else None,
        timeout=ANSWER_S,
        retry_for=RETRY_S,
    )
