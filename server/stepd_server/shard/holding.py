"""Contributions that wait on a shard, and how often they come again. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from stepd.limits import REPEATING_MAX
from stepd.v1 import coordinator_pb2, round_pb2, shard_control_pb2, shard_pb2
from stepd_server.shard.gathering import Gathering, Key, key_of

Name = tuple[Key, int]


def name_of(name: round_pb2.ContributionName | shard_pb2.PushHeader) -> Name:
    """What tells contributions apart, over rounds."""
    return key_of(name.member), name.sequence


class Holding:
    """Streams whose header is here and whose contribution waits for its round or its turn.

    Attributes:
        changes: grows with each that comes or goes.
    """

    def __init__(self) -> None:
        self.changes = 0
        self._headers: dict[Name, shard_pb2.PushHeader] = {}
        # One may be sent again before its broken stream is noticed.
        self._streams: Counter[Name] = Counter()

    @contextmanager
    def waiting(self, header: shard_pb2.PushHeader) -> Iterator[None]:
        name = name_of(header)
        self._headers[name] = header
        self._streams[name] += 1
        self.changes += 1
        try:
            yield
        finally:
            self._streams[name] -= 1
            if not self._streams[name]:
                del self._streams[name], self._headers[name]
            self.changes += 1

    @property
    def headers(self) -> dict[Name, shard_pb2.PushHeader]:
        """Of what waits, in the order in which it came."""
        return self._headers


class Telling:
    """What the coordinator is told of an attempt, bit by bit."""

    def __init__(self, gathering: Gathering, holding: Holding) -> None:
        self._gathering = gathering
        self._holding = holding
        self._arrived: set[Key] = set()
        self._earlier = None if gathering.in_turn else gathering.earlier
        # What the coordinator believes to wait or to be sent here.
        self._offered: dict[Name, round_pb2.ContributionName] = {}
        self._seen = -1

    def news(self) -> list[shard_control_pb2.RoundProgress]:
        """What there is to tell since the last time."""
        self._seen = self._gathering.changes + self._holding.changes
        found = []
        if self._earlier is not None:
            found.append(shard_control_pb2.RoundProgress(earlier=self._earlier))
            self._earlier = None
        # When all are here the sums follow, and say so.
        waiting = {} if self._gathering.complete else self._gathering.contributions
        for key, contribution in waiting.items():
            if contribution.whole and key not in self._arrived:
                self._arrived.add(key)
                found.append(shard_control_pb2.RoundProgress(arrived=contribution.member))
        if self._gathering.in_turn:
            found += self._offers()
        elif self._gathering.given_up:
            found.append(shard_control_pb2.RoundProgress(withdrawn=self._gathering.given_up[-1]))
        return found

    @property
    def has_news(self) -> bool:
        return self._seen != self._gathering.changes + self._holding.changes

    def _offers(self) -> Iterator[shard_control_pb2.RoundProgress]:
        headers, selected = self._holding.headers, self._gathering.selected
        here = set(headers)
        if selected is not None:
            contribution = self._gathering.contributions[selected[0]]
            self._offered[selected] = round_pb2.ContributionName(member=contribution.member, sequence=selected[1])
            if contribution.whole or contribution.streams:
                here.add(selected)
        for name, header in headers.items():
            if name not in self._offered:
                own = self._offered[name] = round_pb2.ContributionName(member=header.member, sequence=header.sequence)
                offered = shard_control_pb2.OfferedContribution(name=own, based_on=header.based_on)
                yield shard_control_pb2.RoundProgress(offered=offered)
        for name in self._offered.keys() - here:
            yield shard_control_pb2.RoundProgress(withdrawn=self._offered.pop(name))


class Had:
    """Whose contributions have been whole here in the present round, over its attempts."""

    def __init__(self, unknown_in: int) -> None:
        """Args:
        unknown_in: the round of which an earlier process may have had some.
        """
        self._unknown_in = unknown_in
        self._round = -1
        self._members: dict[Key, round_pb2.Member] = {}

    def add(self, round_number: int, member: round_pb2.Member) -> None:
        if round_number != self._round:
            self._round = round_number
            self._members = {}
        self._members[key_of(member)] = member

    def to_proto(self, round_number: int) -> shard_control_pb2.EarlierAttempts | None:
        """None: nobody's, for sure."""
        whole = list(self._members.values()) if round_number == self._round else []
        unknown = round_number == self._unknown_in
        return shard_control_pb2.EarlierAttempts(whole=whole, unknown=unknown) if whole or unknown else None


class Repeats:
    """How often contributions came again after they had arrived, by worker; since this process has the run."""

    def __init__(self) -> None:
        # Incarnation and count. Last is who repeated last.
        self._counts: dict[str, tuple[int, int]] = {}

    def add(self, member: round_pb2.Member) -> None:
        """One more of this member."""
        incarnation, count = self._counts.pop(member.worker, (0, 0))
        if member.incarnation >= incarnation:
            same = member.incarnation == incarnation
            incarnation, count = member.incarnation, count + 1 if same else 1
        self._counts[member.worker] = (incarnation, count)
        if len(self._counts) > REPEATING_MAX:
            del self._counts[next(iter(self._counts))]

    def to_proto(self) -> list[coordinator_pb2.RepeatedContributions]:
        return [
            coordinator_pb2.RepeatedContributions(worker=worker, incarnation=incarnation, count=count)
            for worker, (incarnation, count) in self._counts.items()
        ]
