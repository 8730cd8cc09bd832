"""Transcripts of rounds: tests/unit/rounds/*.txt, to be read as the description of how a round goes.

Each holds commands, a line `----`, and what the rounds answer: the actions in order, or (nothing).
STEPD_REWRITE=1 writes the answers anew; read the difference before keeping it.

    run shards=2 workers=2 clip=1 group-clip=1 nonfinite=error lr=0.1 schedule=4     a new run (rate 0 at step 4)
        layerwise                 its rule wants norms of tensors
        quorum=2 grace=0.5        rounds are closed when so many have arrived
        async staleness=3 damped, or bounded=1     contributions are taken in turn
    join a                        a worker joins; again: under its next incarnation
    leave a contributed=0/0       leaves; the latest attempt for which it has a receipt of every shard
    lose a                        its lease runs out
    arrived a b id=0/0 on=0,1     contributions are whole; without `id`: of this attempt; without `on`: everywhere
    closed on=0,1 begun=a,b       shards begin no more contributions
    time grace                    the time has passed
    offered a:1 b:1 based=0 on=0,1             contributions wait on shards; named by worker and sequence
    withdrawn a:1 on=0            one does not wait any more; or, not in turn, has begun and was given up
    gathered on=0,1 squares=9,16 nonfinite=a:3 overflow sequences=1,1    sums come in
    measured on=0,1 squares=9,16  the first of the sums that norms of tensors are made of; the second is 1 everywhere
    finished on=0,1               the last decision is carried out
    away 1, back 1 round=0 step=0 torn, broken 1 ...        a shard goes, comes, gives up
    change workers=3              the owner changes the policy; a word that ends in `-` takes it away
    add-group                     a group was added: the next version of the layout
    load                          the owner loads a state of the optimizer
    committed on=0,1              shards use it
    restart                       another coordinator, with what was recorded; `nobody`: without members
    state                         print where things stand
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stepd.definitions import GroupSpec, ParameterSpec, RunSpec
from stepd.policies import AnySync, Async, BoundedStaleness, Clip, ClipNorm, ClipValue, Sync
from stepd.rules import LAMB, SGD
from stepd.schedules import Linear
from stepd_server.coordinator import events
from stepd_server.coordinator.events import Action, Event
from stepd_server.coordinator.policy import LastTogether
from stepd_server.coordinator.rounds import Rounds
from stepd_server.coordinator.vocabulary import Decision, Member, Nonfinite, Offer, RoundId, Standing, Sums, Timer
from stepd_server.exact import ExactSum

FOLDER = Path(__file__).parent / "rounds"
REWRITE = bool(os.environ.get("STEPD_REWRITE"))


def spec_of(options: dict[str, str]) -> RunSpec:
    value = ClipValue(float(options["clip-value"])) if "clip-value" in options else None
    norm = ClipNorm(float(options["clip"])) if "clip" in options else None
    own = Clip(ClipNorm(float(options["group-clip"]))) if "group-clip" in options else None
    return RunSpec(
        name="digits",
        parameters=(ParameterSpec("w", (4,), np.dtype(np.float32)),),
        groups=(GroupSpec((LAMB if "layerwise" in options else SGD)(lr=float(options.get("lr", "0.1"))), clip=own),)
        * (1 + int(options.get("added", "0"))),
        schedule=Linear(total_steps=int(options["schedule"])) if "schedule" in options else None,
        clip=Clip(norm, value) if norm or value else None,
        sync=sync_of(options),
        on_nonfinite=options.get("nonfinite", "skip"),
    )


def sync_of(options: dict[str, str]) -> AnySync:
    workers = int(options["workers"]) if options.get("workers", "any") != "any" else None
    if "bounded" in options:
        assert workers is not None
        return BoundedStaleness(workers, int(options["bounded"]))
    elif "async" in options:
        limit = int(options["staleness"]) if "staleness" in options else None
        return Async(limit, "inverse" if "damped" in options else None)
    quorum = int(options["quorum"]) if "quorum" in options else None
    return Sync(workers, quorum, float(options.get("grace", 0)), deterministic="deterministic" in options)


class Run:
    """A run with its recorded decision, as a coordinator's file holds it."""

    def __init__(self) -> None:
        self.shards = 1
        self.options: dict[str, str] = {}
        self.members: dict[str, Member] = {}
        self.recorded: Decision | None = None
        self.standings: dict[Member, Standing] = {}
        self.attempt = events.RecordAttempt(RoundId(0, 0))
        self.first: dict[Member, int] = {}
        self.loaded = False
        self.last_together: LastTogether | None = None
        self.rounds = Rounds(1, spec_of({}))

    def command(self, line: str) -> list[str]:
        name, *words = line.split()
        options = dict(word.split("=", 1) for word in words if "=" in word)
        plain = [word for word in words if "=" not in word]
        handler: Callable[[list[str], dict[str, str]], list[str]] = getattr(self, f"do_{name.replace('-', '_')}")
        return handler(plain, options)

    def apply(self, *happened: Event) -> list[str]:
        actions = [action for event in happened for action in self._apply(event)]
        return [str(action) for action in actions] or ["(nothing)"]

    def _apply(self, event: Event) -> list[Action]:
        actions = self.rounds.apply(event)
        if isinstance(event, events.MemberJoined):
            self.first[event.member] = self.rounds.first_round_of(event.member).round
        elif isinstance(event, events.MemberLeft | events.MemberLost):
            self.first.pop(event.member, None)
        for action in actions:
            if isinstance(action, events.Record):
                self.recorded, self.standings = action.decision, dict(action.standings)
            elif isinstance(action, events.RecordAttempt):
                self.attempt = action
        return actions

    def do_run(self, words: list[str], options: dict[str, str]) -> list[str]:
        options |= dict.fromkeys(words, "")
        self.shards = int(options.pop("shards", "1"))
        self.options, self.members, self.recorded, self.first = options, {}, None, {}
        self.attempt = events.RecordAttempt(RoundId(0, 0))
        self.loaded, self.standings, self.last_together = False, {}, None
        self.rounds = Rounds(self.shards, spec_of(options))
        return [repr(self.rounds)]

    def do_restart(self, words: list[str], _: dict[str, str]) -> list[str]:
        following = self.recorded.id.round + 1 if self.recorded else 0
        under_way = self.attempt.id.round == following
        attempt = self.attempt.id.attempt + 1 if under_way else 1
        if "nobody" in words:
            self.first.clear()
        spec = spec_of(self.options)
        self.rounds = Rounds(
            self.shards,
            spec,
            last=self.recorded,
            attempt=attempt,
            away=range(self.shards),
            state_loaded=self.loaded,
            layout=self._layout,
            members={member: self.first[member] for member in self.members.values() if member in self.first},
            left_out=self.attempt.left_out if under_way else (),
            nonfinite=self.attempt.nonfinite if under_way else (),
            standings=self.standings,
            last_together=self.last_together,
        )
        return [repr(self.rounds)]

    def do_state(self, *_: object) -> list[str]:
        return [repr(self.rounds)]

    def do_join(self, names: list[str], _: dict[str, str]) -> list[str]:
        for name in names:
            old = self.members.get(name)
            rank = old.rank if old else len(self.members)
            self.members[name] = Member(name, old.incarnation + 1 if old else 1, rank)
        return self.apply(*(events.MemberJoined(self.members[name]) for name in names))

    def do_leave(self, names: list[str], options: dict[str, str]) -> list[str]:
        contributed = self._id(options["contributed"]) if "contributed" in options else None
        return self.apply(*(events.MemberLeft(self.members[name], contributed) for name in names))

    def do_lose(self, names: list[str], _: dict[str, str]) -> list[str]:
        return self.apply(*(events.MemberLost(self.members[name]) for name in names))

    def do_arrived(self, names: list[str], options: dict[str, str]) -> list[str]:
        at, shards = self._id(options.get("id")), self._shards(options)
        return self.apply(*(events.Arrived(s, at, self.members[name]) for name in names for s in shards))

    def do_earlier(self, names: list[str], options: dict[str, str]) -> list[str]:
        whole = None if "unknown" in names else tuple(self.members[name] for name in names)
        return self.apply(*(events.Earlier(s, self._id(options.get("id")), whole) for s in self._shards(options)))

    def do_closed(self, _: list[str], options: dict[str, str]) -> list[str]:
        begun = tuple(self.members[name] for name in options.get("begun", "").split(",") if name)
        return self.apply(*(events.Closed(s, self._id(options.get("id")), begun) for s in self._shards(options)))

    def do_time(self, words: list[str], options: dict[str, str]) -> list[str]:
        return self.apply(events.TimeUp(self._id(options.get("id")), Timer(words[0])))

    def do_offered(self, names: list[str], options: dict[str, str]) -> list[str]:
        at, based_on = self._id(options.get("id")), int(options.get("based", self.rounds.step))
        offers = [Offer(*self._named(name), based_on) for name in names]
        return self.apply(*(events.Offered(s, at, offer) for offer in offers for s in self._shards(options)))

    def do_withdrawn(self, names: list[str], options: dict[str, str]) -> list[str]:
        at, shards = self._id(options.get("id")), self._shards(options)
        return self.apply(*(events.Withdrawn(s, at, *self._named(name)) for name in names for s in shards))

    def _named(self, name: str) -> tuple[Member, int]:
        worker, sequence = name.split(":")
        return self.members[worker], int(sequence)

    def do_gathered(self, words: list[str], options: dict[str, str]) -> list[str]:
        at, shards = self._id(options.get("id")), self._shards(options)
        squares = [float(square) for square in options.get("squares", "0").split(",")]
        found = [word.split(":") for word in options.get("nonfinite", "").split(",") if word]
        nonfinite = tuple(Nonfinite(self.members[name], int(parameter)) for name, parameter in found)
        sequences = tuple(map(int, filter(None, options.get("sequences", "").split(","))))

        def sums(index: int) -> Sums:
            part = ExactSum()
            part.add(squares[index % len(squares)])
            own = (part if "group-clip" in self.options else None,)
            groups = 1 + self._layout  # each but the first adds nothing to the sums
            return Sums((part, *[ExactSum()] * (groups - 1)), own * groups, nonfinite, "overflow" in words, sequences)

        return self.apply(*(events.Gathered(s, at, sums(i)) for i, s in enumerate(shards)))

    def do_measured(self, _: list[str], options: dict[str, str]) -> list[str]:
        at, shards = self._id(options.get("id")), self._shards(options)
        squares = [float(square) for square in options["squares"].split(",")]

        def measures(index: int) -> dict[int, tuple[ExactSum, ExactSum]]:
            first, second = ExactSum(), ExactSum()
            first.add(squares[index % len(squares)])
            second.add(1.0)
            return {0: (first, second)}

        return self.apply(*(events.Measured(s, at, measures(i)) for i, s in enumerate(shards)))

    def do_finished(self, _: list[str], options: dict[str, str]) -> list[str]:
        last = self.rounds.last
        assert last is not None
        step = int(options.get("step", last.step))
        return self.apply(
            *(events.Finished(s, int(options.get("round", last.id.round)), step) for s in self._shards(options))
        )

    def do_away(self, shards: list[str], _: dict[str, str]) -> list[str]:
        return self.apply(*(events.ShardAway(int(shard)) for shard in shards))

    def do_back(self, words: list[str], options: dict[str, str]) -> list[str]:
        at_round, step = int(options["round"]), int(options["step"])
        shards = [int(word) for word in words if word != "torn"]
        return self.apply(*(events.ShardBack(shard, at_round, step, "torn" in words) for shard in shards))

    def do_broken(self, words: list[str], _: dict[str, str]) -> list[str]:
        return self.apply(events.ShardLost(int(words[0]), " ".join(words[1:])))

    def do_change(self, words: list[str], options: dict[str, str]) -> list[str]:
        self.options |= options | {word: "" for word in words if not word.endswith("-")}
        for word in words:
            self.options.pop(word.rstrip("-") if word.endswith("-") else "", None)
        spec = spec_of(self.options)
        self.last_together = self.rounds.last_together(spec.sync)
        return self.apply(events.PolicyChanged(spec))

    def do_add_group(self, *_: object) -> list[str]:
        self.options["added"] = str(self._layout + 1)
        return self.apply(events.LayoutChanged(spec_of(self.options), self._layout))

    @property
    def _layout(self) -> int:
        return int(self.options.get("added", "0"))

    def do_load(self, *_: object) -> list[str]:
        self.loaded = True
        return self.apply(events.StateLoaded(spec_of(self.options)))

    def do_committed(self, _: list[str], options: dict[str, str]) -> list[str]:
        return self.apply(*(events.StateCommitted(shard) for shard in self._shards(options)))

    def _id(self, text: str | None) -> RoundId:
        return RoundId(*map(int, text.split("/"))) if text else self.rounds.id

    def _shards(self, options: dict[str, str]) -> list[int]:
        return [int(shard) for shard in options["on"].split(",")] if "on" in options else list(range(self.shards))


def replay(text: str) -> str:
    """The transcript with the answers that are given now."""
    run = Run()
    written: list[str] = []
    expected = False
    for line in text.splitlines():
        if line == "----":
            expected = True
        elif expected:
            expected = bool(line)  # answers end with an empty line
        elif line and not line.startswith("#"):
            written += [line, "----", *run.command(line), ""]
        elif line or (written and written[-1]):
            written.append(line)
    return "\n".join(written).rstrip("\n") + "\n"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.txt")), ids=lambda path: path.stem)
def test_rounds_answer_as_the_transcript_says(path: Path) -> None:
    text = path.read_text()
    replayed = replay(text)
    if REWRITE:
        path.write_text(replayed)
    assert replayed == path.read_text()


def test_transcripts_are_found() -> None:
    assert len(list(FOLDER.glob("*.txt"))) >= 8
