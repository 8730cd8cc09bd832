"""What goes wrong between hosts and with them, in the order that the scenario says."""

from __future__ import annotations

import random
from typing import Any, Final

from tests.simulator.loop import VirtualLoop
from tests.simulator.scenario import Fault, Scenario

# Seconds that a message takes: usually, and now and then.
_LATENCY: Final = 0.002
_HICCUP: Final = 0.2
# Until a server notices that nobody listens to it any more: keepalive at the latest.
_NOTICED: Final = 10.0


class Weather:
    """Attributes:
    messages: that have arrived since faults may happen; None: they may not yet.
    calm_at: when the last fault will be over.
    """

    def __init__(self, loop: VirtualLoop, scenario: Scenario, world: Any) -> None:
        self._loop = loop
        self._rng = random.Random(f"weather {scenario.seed}")
        self._world = world
        self._faults: list[Fault] = list(reversed(scenario.faults))
        self._stalls: dict[frozenset[str], float] = {}
        self._slow_until = 0.0
        self._rough = bool(scenario.faults)
        self.messages: int | None = None
        self.calm_at = 0.0

    @property
    def calm(self) -> bool:
        """Whether nothing more goes wrong."""
        return not self._faults and self._loop.time() >= self.calm_at

    def arrival(self, source: str, target: str) -> float:
        now, draw = self._loop.time(), self._rng.random()
        takes = _LATENCY * (0.1 + draw)
        if self._rough and draw > 0.995:
            takes += _HICCUP * self._rng.random()
        if now < self._slow_until:
            takes *= 50
        if self._stalls:
            now = max(now, self._stalls.get(frozenset((source, target)), 0.0))
        return now + takes

    def until_noticed(self) -> float:
        return self._rng.choice((0.01, 0.5, _NOTICED))

    def arrived(self) -> None:
        if self.messages is None:
            return
        self.messages += 1
        while self._faults and self._faults[-1].at <= self.messages:
            self._strike(self._faults.pop())

    def give_up(self) -> None:
        """What has not gone wrong by now does not any more."""
        self._faults.clear()

    def lasts(self, seconds: float) -> None:
        self.calm_at = max(self.calm_at, self._loop.time() + seconds)

    def _strike(self, fault: Fault) -> None:
        world = self._world
        world.note("fault", fault)
        match fault.kind:
            case "kill":
                world.kill(fault.host, fault.seconds)
            case "die":
                world.die_soon(fault.host, (fault.where, fault.stores), fault.seconds)
            case "stop":
                world.stop(fault.host, fault.seconds)
                self.lasts(fault.seconds)
            case "policy":
                world.change_policy(fault.policy)
            case "wall":
                world.wall_offset += self._rng.choice((-3600.0, 3600.0))
            case _:
                self._strike_links(fault)

    def _strike_links(self, fault: Fault) -> None:
        world, rng, until = self._world, self._rng, self._loop.time() + fault.seconds
        others = [host for host in world.hosts if host != fault.host]
        match fault.kind:
            case "cut":
                if call := self._one_of(list(world.network.calls.values()), fault.where):
                    call.cut(lose_request=rng.random() < 0.5)
            case "again":
                calls = [*world.network.calls.values(), *world.network.recent]
                # A shard registers again and again with what it holds, and never out of turn.
                if call := self._one_of([call for call in calls if "Register" not in call.path], fault.where):
                    call.again(fault.seconds)
                    self.lasts(fault.seconds)
            case "part":
                world.part(fault.host, rng.choice(others), rng)
            case "stall":
                self._stalls[frozenset((fault.host, rng.choice(others)))] = until
                self.lasts(fault.seconds)
            case "alone":
                self._stalls |= {frozenset((fault.host, host)): until for host in others}
                self.lasts(fault.seconds)
            case "slow":
                self._slow_until = self._loop.time() + min(fault.seconds, 0.5)
                self.lasts(fault.seconds)

    def _one_of(self, calls: list[Any], where: str) -> Any:
        """A call, of a kind if there is one."""
        return self._rng.choice([call for call in calls if where in call.path] or calls or [None])
