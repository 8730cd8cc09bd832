"""Rounds that are closed before all have contributed, and what they owe to those who have been told otherwise. Pure.

A worker may have been told that every shard has its contribution, and then the round starts over: for a shard that
died, for a value that is not finite, for somebody who was lost. Shards say whose they had; such a round is not closed,
nor decided, without them. Who is lost is not waited for.
"""

from __future__ import annotations

from stepd_server.coordinator.attempt import Attempt
from stepd_server.coordinator.closing import Closing, Stage
from stepd_server.coordinator.events import Close, Select, SetTimer
from stepd_server.coordinator.standing import RoundsStanding
from stepd_server.coordinator.vocabulary import Member, Selected, Timer


class RoundsWithQuorum(RoundsStanding):
    """What closes a round. What goes on otherwise is in rounds.py."""

    def _advance(self) -> None:
        raise NotImplementedError

    def _start_over(self) -> None:
        raise NotImplementedError

    def _can_do_without(self, attempt: Attempt, member: Member) -> bool:
        """Whether the attempt can go on although a member of it will send nothing more."""
        closing = attempt.closing
        if closing is None or closing.stage is Stage.CLOSED:
            return False
        attempt.gone.add(member)
        return len(attempt.members) - len(attempt.gone - attempt.whole) >= closing.quorum

    def _look_for_quorum(self, attempt: Attempt, closing: Closing) -> None:
        if closing.stage is not Stage.OPEN or not closing.quorum <= len(attempt.whole) < len(attempt.members):
            return
        if self._recalls(attempt):
            self._advance()
        elif not attempt.promised(self._since.keys() & set(attempt.lacking), self._all):
            closing.stage = Stage.GRACE
            self._actions.append(SetTimer(self.id, Timer.GRACE, closing.grace))

    def _recalls(self, attempt: Attempt) -> bool:
        """Whether the round starts over with members who were too slow, as far as the shards' words had come."""
        recalled = attempt.promised(self._since.keys() & self._slow, self._all)
        if recalled:
            self._slow -= recalled
            self._start_over()
        return bool(recalled)

    def _time_up(self, attempt: Attempt, timer: Timer) -> None:
        closing = attempt.closing
        if closing and timer is Timer.GRACE and closing.stage is Stage.GRACE:
            closing.stage = Stage.CLOSING
            self._actions.append(Close(self._all, self.id))
        elif closing and timer is Timer.STRAGGLERS and closing.stage is Stage.CLOSED and attempt.lacking:
            self._slow |= set(attempt.lacking)
            self._start_over()

    def _close(self, attempt: Attempt, shard: int, begun: tuple[Member, ...]) -> None:
        closing = attempt.closing
        if closing is None or closing.stage is not Stage.CLOSING:
            return
        closing.take_in(shard, begun)
        final = closing.begun_anywhere(self._all)
        if final is None:
            return
        closing.stage = Stage.CLOSED
        if final & (attempt.gone - attempt.whole):
            self._start_over()  # what has begun of it is added up already, and the rest does not come
            return
        attempt.close(final)
        self._actions.append(Select(self._all, self.id, tuple(Selected(member) for member in attempt.members)))
        if attempt.lacking:
            self._actions.append(SetTimer(self.id, Timer.STRAGGLERS, closing.stragglers))
