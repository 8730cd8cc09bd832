"""Kills at any time, and in chosen phases of a step, of servers and workers."""

from __future__ import annotations

import random
import signal
import time

from tests.faults.roles import Fleet, Journal, Role
from tests.faults.trainees import Trainee, Trainees
from tests.integration.servers import eventually
from tests.patience import PATIENCE_S

# Where a doomed server dies: the phases of a step, as the files that do them.
SHARD_PHASES = {
    "gradients come in": r"shard/(gathering|sums|coverage)\.py",
    "between sums and decision": r"shard/(run|gathered|remembering)\.py",
    "applying": r"shard/(applying|finishing|undo|journal|averaging)\.py",
    "pulling": r"shard/(pulling|reading)\.py",
    "sharing memory": r"shard/sharing\.py",
}
COORDINATOR_PHASES = {
    "gathering": r"coordinator/(rounds|attempt|driver|leading)\.py",
    "deciding": r"coordinator/(decision|convert|run)\.py",
    "recording": r"coordinator/(store|slots)\.py",
    "members": r"coordinator/(membership|seats|places)\.py",
}
# Of those files, at most so many lines before it dies: of most of them a step takes hundreds.
LINES = 1500


class Killer:
    """Kills, one blow after the other; the same ones for the same seed, but for what the machine makes of them.

    Attributes:
        done: what it has done.
        struck: ranks of workers that it has killed.
    """

    def __init__(self, fleet: Fleet, trainees: Trainees, seed: int) -> None:
        self._fleet = fleet
        self._trainees = trainees
        self._random = random.Random(seed)
        self._shard_phases = dict(SHARD_PHASES)
        if all(worker.config["transport"] == "grpc" for worker in trainees.workers):
            del self._shard_phases["sharing memory"]  # nothing of that is ever done, and nobody dies of it
        self.done = [f"seed {seed}"]
        self.struck: set[int] = set()

    @property
    def kills(self) -> int:
        """Of servers."""
        return sum(role.deaths for role in self._fleet.roles)

    def strike_servers(self) -> None:
        """Kill one or two, and wait until all doomed ones have died."""
        doomed = []
        for victim in self._random.sample(self._fleet.roles, self._random.choice((1, 1, 1, 2))):
            way = self._random.choice(("at any time", "as it applies", "at a line", "at a line"))
            if way == "as it applies" and victim is not self._fleet.coordinator:
                self._strike_as_it_applies(victim)
                continue
            if way != "at a line":
                self.done.append(f"{victim.name}: at any time")
                victim.kill()
                continue
            phases = COORDINATOR_PHASES if victim is self._fleet.coordinator else self._shard_phases
            phase = self._random.choice(sorted(phases))
            self.done.append(f"{victim.name}: {phase}")
            victim.doom(phases[phase], self._random.randint(1, LINES))
            doomed.append(victim)
        self._trainees.wait(
            lambda: not any(victim.doomed for victim in doomed), f"the doomed have died, {self.done[-2:]}", 60
        )

    def _strike_as_it_applies(self, victim: Role) -> None:
        """Kill a shard while its arrays change: also in the middle of compiled loops, which have no lines to count."""
        journal = Journal(victim, self._trainees.run)
        deadline = time.monotonic() + PATIENCE_S
        while not journal.applies and time.monotonic() < deadline:
            pass
        victim.kill()
        self.done.append(f"{victim.name}: as it applies" + (", half done" if journal.applies else ""))

    def strike_worker(self) -> Trainee:
        """Kill a worker and start another in its place, which is given."""
        victim = self._random.choice(self._trainees.workers)
        self.done.append(f"worker {victim.rank}")
        self.struck.add(victim.rank)
        victim.signal(signal.SIGKILL)
        return self._trainees.replace(victim)

    def strike_all(self) -> None:
        """Kill all servers at once."""
        self.done.append("all servers")
        before = self.kills
        for role in self._fleet.roles:
            role.signal(signal.SIGKILL)
        eventually(lambda: self.kills >= before + len(self._fleet.roles), "all servers have died")

    def go_on(self) -> None:
        """Let some steps happen."""
        self._trainees.await_steps(self._random.randint(1, 3))
