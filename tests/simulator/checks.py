"""What must hold of every history."""

from __future__ import annotations

from collections.abc import Mapping

from stepd.policies import Async, Sync
from stepd.specs import run_from_proto
from stepd_server.coordinator.store import RunRecord
from stepd_server.coordinator.vocabulary import Decision, Outcome
from tests.simulator.calls import Call
from tests.simulator.changes import added_masters
from tests.simulator.model import Model
from tests.simulator.readers import Read
from tests.simulator.scenario import Scenario
from tests.simulator.sent import Contradiction, Contributions, Key, States, key_of
from tests.simulator.world import World, history


def problems_of(world: World) -> list[str]:
    """Everything that is wrong with a history."""
    if world.problems or world.lost:
        return [*world.problems, *([f"the run is lost: {world.lost}"] if world.lost else [])]
    try:
        contributions = _contributions(world)
        model = _replay(world, contributions)
    except Contradiction as error:
        return [str(error)]
    return [
        *_count(world, contributions),
        *_answers(world),
        *_kept(world),
        *_reads(world.reads, model.versions, "version"),
        *_reads(world.averaged, model.averages, "average"),
        *_undisturbed(world),
    ]


def _contributions(world: World) -> Contributions:
    layouts = [record.prepared.layout for record in world.course.records if isinstance(record, RunRecord)]
    contributions = Contributions(layouts)
    for call in world.pushes:
        contributions.add(_shard(call), call.sent)
    return contributions


def _shard(call: Call) -> int:
    return int(call.channel.host.removeprefix("shard-"))


def _replay(world: World, contributions: Contributions) -> Model:
    """What was recorded, in its order."""
    states = States()
    for call in world.stagings:
        states.add(_shard(call), call.sent)
    model, layout, state_id = Model(run_from_proto(world.spec), world.masters), 0, ""
    for record in world.course.records:
        if isinstance(record, Decision):
            model.apply(record, contributions)
            continue
        spec, prepared = run_from_proto(record.prepared.spec), record.prepared
        if prepared.layout.version != layout:
            model.extend(spec, added_masters().values())
            layout = prepared.layout.version
        elif record.state_id != state_id:
            model.load(spec, states.kept(record.state_id, prepared.layout, spec))
            state_id = record.state_id
        else:
            model.change(spec)
    return model


def _count(world: World, contributions: Contributions) -> list[str]:
    """No contribution is in two steps."""
    if world.scenario.repeatable:
        return []  # there, two may well be the same; the result says whether one was counted twice
    seen: dict[bytes, Key] = {}
    problems = []
    for decision in world.course.decisions:
        for member in decision.members if decision.outcome is Outcome.APPLIED else ():
            key = key_of(decision, member)
            before = seen.setdefault(contributions.bytes_of(key), key)
            if before != key:
                problems.append(f"one contribution was counted as {before} and as {key}")
    return problems


def _answers(world: World) -> list[str]:
    """What workers were told of their contributions is what was decided."""
    by_round = {decision.id.round: decision for decision in world.course.decisions}
    problems = []
    for answer in world.answers:
        decision = by_round.get(answer.round)
        if decision is None:
            if answer.decided:
                problems.append(f"{answer} speaks of a round that was never decided")
            continue
        counted = answer.member in {(member.worker, member.incarnation) for member in decision.members}
        if answer.sequence and answer.status in ("accepted", "duplicate") and not answer.decided:
            continue  # of a push: that round may have been gathered again, with another's
        if answer.status in ("late", "stale", "quarantined") and counted and (answer.decided or answer.sequence):
            problems.append(f"{answer}, and it was counted: {decision}")
        if answer.status in ("accepted", "duplicate") and not counted and answer.decided:
            problems.append(f"{answer}, and it was not counted: {decision}")
    return problems


def _kept(world: World) -> list[str]:
    """Who was told that its contribution is whole on every shard, and stayed, has it in the step."""
    if isinstance(world.scenario.sync, Sync) and world.scenario.sync.quorum is not None:
        return []  # what was gathered with it may be lost with a shard, and gathered again without waiting for it
    if not isinstance(world.scenario.sync, Sync):
        return _kept_in_turn(world)
    decisions = {decision.id.round: decision for decision in world.course.decisions}
    stayed: dict[tuple[str, int], int] = {}
    for decision in decisions.values():
        for member in decision.members:
            stayed[member.worker, member.incarnation] = decision.id.round
    problems = []
    for answer in world.answers:
        if answer.status != "accepted" or stayed.get(answer.member, -1) <= answer.round:
            continue
        decided = decisions[answer.round]
        known = {(member.worker, member.incarnation) for member in (*decided.members, *decided.quarantined)}
        if answer.member not in known:
            problems.append(f"{answer}, its worker stayed, and it was not counted: {decided}")
    return problems


def _kept_in_turn(world: World) -> list[str]:
    """The same where contributions are taken in turn, by whichever round: a worker begins no other before."""
    counted = {
        (selected.member.worker, selected.member.incarnation, selected.sequence)
        for decision in world.course.decisions
        for selected in decision.counted
    }
    last = {(worker, incarnation): 0 for worker, incarnation, _ in counted}
    for worker, incarnation, sequence in counted:
        last[worker, incarnation] = max(last[worker, incarnation], sequence)
    problems = []
    for answer in world.answers:
        named = (*answer.member, answer.sequence)
        if answer.status == "stale" and named in counted:
            problems.append(f"{answer}, and it was counted")
        may_become_stale = isinstance(world.scenario.sync, Async) and world.scenario.sync.max_staleness is not None
        if answer.status != "accepted" or named in counted or (may_become_stale and not answer.decided):
            continue
        if answer.decided or last.get(answer.member, 0) > answer.sequence:
            problems.append(f"{answer}, and it was never counted")
    return problems


def _reads(reads: list[Read], versions: list[dict[str, bytes]], what: str) -> list[str]:
    """Whatever was read is one version of all parameters, the one it was said to be."""
    problems = []
    for read in reads:
        if read.step >= len(versions) or not _is_of(read, versions[read.step]):
            fits = [step for step, version in enumerate(versions) if _is_of(read, version)]
            problems.append(f"{read.who} read what was said to be {what} {read.step} and is {fits or 'none'}")
    return problems


def _is_of(read: Read, version: Mapping[str, bytes]) -> bool:
    """A group may have been added after it was read."""
    return all(version.get(name) == held for name, held in read.params.items()) and (
        len(version) - len(read.params) in (0, len(added_masters()))
    )


def _undisturbed(world: World) -> list[str]:
    """The bits are those of a history in which nothing goes wrong."""
    scenario: Scenario = world.scenario
    if not scenario.repeatable or not scenario.faults:
        return []
    calm = history(scenario.undisturbed())
    if calm.problems:
        return [f"undisturbed: {problem}" for problem in calm.problems]
    return [] if calm.final == world.final else ["the parameters are not those of the undisturbed run"]
