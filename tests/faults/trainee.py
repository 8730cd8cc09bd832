"""A worker as a process of its own, which tells every result as a line of JSON.

    python -P trainee.py '{"target": "127.0.0.1:7070", "run": "digits", "rank": 0, "until": "/tmp/until"}'

It steps until the file `until` holds a number of steps that it has reached; before the first it waits for the file
`begin`, if one is named.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import stepd


def say(event: str, **about: Any) -> None:
    print(json.dumps({"event": event, "at": time.monotonic(), **about}, default=str), flush=True)  # noqa: T201 (it is how it tells)


def digest(params: dict[str, np.ndarray]) -> str:
    whole = hashlib.blake2b(digest_size=8)
    for name in sorted(params):
        whole.update(params[name].tobytes())
    return whole.hexdigest()


def gradient(kind: str, rank: int, params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A pure function of rank and parameters: who takes a dead worker's place sends what it would have sent.

    "noise" depends on every bit of the parameters, so that one wrong read shows in all that follows. "digit" is
    16**rank in all places: in a sum of them, each digit in base 16 says how often a worker was counted.
    """
    if kind == "digit":
        return {name: np.full(array.shape, -(16.0**rank), array.dtype) for name, array in params.items()}
    rng = np.random.default_rng((rank, int(digest(params), 16)))
    return {
        name: 0.5 * (array - np.float32(rank)) + rng.standard_normal(array.shape, np.float32)
        for name, array in params.items()
    }


def train(config: dict[str, Any], run: stepd.Run, start: int) -> None:
    until, rank, pause = Path(config["until"]), config["rank"], config.get("pause", 0.05)
    with run.join(rank, name=config.get("name"), lease=config.get("lease", 10.0)) as worker:
        say("joined", rank=worker.rank, id=worker.id)
        params, step = worker.pull(), start
        say("pulled", digest=digest(params), first=float(next(iter(params.values())).flat[0]))
        while "begin" in config and not Path(config["begin"]).exists():
            time.sleep(0.05)
        while not (until.exists() and step >= int(until.read_text())):
            grads = gradient(config.get("gradient", "noise"), worker.rank, params)
            result = worker.step(grads)
            params, step = result.params, result.step
            say(
                "step",
                step=result.step,
                lr=result.lr,
                norm=result.grad_norm,
                scale=result.clip_scale,
                skipped=result.skipped,
                receipt=result.receipt.status,
                digest=digest(params),
                first=float(next(iter(params.values())).flat[0]),
            )
            time.sleep(pause)
    say("left")


def main() -> int:
    config = json.loads(sys.argv[1])
    say("started")
    try:
        options = {name: config[name] for name in ("timeout", "retry_for", "transport") if name in config}
        with stepd.connect(config["target"], **options) as client:
            while True:
                run = client.run(config["run"])
                try:
                    train(config, run, run.step_count)
                    return 0
                except stepd.FailedPrecondition as error:
                    if error.reason != "NOT_A_MEMBER" or not config.get("rejoin"):
                        raise
                    say("lost", reason=error.reason, step=run.step_count)
    except stepd.StepdError as error:
        say("error", kind=type(error).__name__, reason=error.reason, message=str(error), details=error.details)
        return 3


if __name__ == "__main__":
    sys.exit(main())
