"""What must hold of every history."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from stepd.policies import Async, BoundedStaleness
from stepd.specs import run_from_proto
from stepd_server.coordinator.store import RunRecord
from stepd_server.coordinator.vocabulary import Decision, Member, Outcome
from tests.simulator.calls import Call
from tests.simulator.changes import added_masters
from tests.simulator.model import Model
from tests.simulator.readers import Read
from tests.simulator.scenario import Scenario
from tests.simulator.sent import Contradiction, Contributions, Key, States, keys_of, messages_of
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
        *_turns(world, contributions),
        *_reads(world.reads, model.versions, "version"),
        *_reads(world.averaged, model.averages, "average"),
        *_undisturbed(world),
    ]


def _contributions(world: World) -> Contributions:
    layouts = [record.prepared.layout for record in world.course.records if isinstance(record, RunRecord)]
    rounds = {(*answer.member, -1, answer.sequence): answer.round for answer in world.answers}
    contributions = Contributions(layouts, rounds)
    for call in world.pushes:
        contributions.add(_shard(call), messages_of(call.path, call.sent))
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
        for key, _ in keys_of(decision) if decision.outcome is Outcome.APPLIED else ():
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
            if answer.decided and answer.round >= 0:
                problems.append(f"{answer} speaks of a round that was never decided")
            continue
        counted = answer.member in {(member.worker, member.incarnation) for member in decision.members}
        if answer.status in ("late", "stale", "quarantined") and counted:
            problems.append(f"{answer}, and it was counted: {decision}")
        if answer.status in ("accepted", "duplicate") and not counted and answer.decided:
            problems.append(f"{answer}, and it was not counted: {decision}")
    return problems


def _turns(world: World, contributions: Contributions) -> list[str]:
    """Contributions that are steps of their own: none twice, none too stale, nobody too far ahead."""
    sync, problems = world.scenario.sync, list[str]()
    counted: set[Key] = set()
    for decision in world.course.decisions:
        for key, scale in keys_of(decision) if decision.counted else ():
            staleness = decision.step_before - contributions.based_on(key)
            if key in counted:
                problems.append(f"{key} was counted twice, the second time by {decision}")
            counted.add(key)
            if isinstance(sync, Async) and len(world.scenario.policies) == 1:
                if sync.max_staleness is not None and staleness > sync.max_staleness:
                    problems.append(f"{decision} takes what is {staleness} steps old")
                if scale != (1 / (1 + staleness) if sync.damping else 1.0):
                    problems.append(f"{decision} takes what is {staleness} steps old times {scale}")
    told = {(*answer.member, -1, answer.sequence): answer for answer in world.answers}
    problems += [f"{told[key]}, and it was counted" for key in counted & told.keys() if told[key].status == "stale"]
    if isinstance(sync, BoundedStaleness) and len(world.scenario.policies) == 1 and _came_once(world):
        problems += _ahead(world, sync)  # who comes again begins with the turns of the slowest
    return problems


def _came_once(world: World) -> bool:
    """Whether everybody has been a member once. One whose answer to a join was lost has been one as well."""
    given = [number for worker in world.workers for number in worker.incarnations]
    again = any(worker.came_again for worker in world.workers)
    return not again and max(given, default=0) - min(given, default=0) < len(world.workers)


def _ahead(world: World, sync: BoundedStaleness) -> list[str]:
    turns = {worker.name: 0 for worker in world.workers}
    problems = []
    for decision in world.course.decisions:
        for member, *_ in decision.counted:  # one that was left out has had its turn, too
            if turns[member.worker] >= min(turns.values()) + max(sync.staleness, 1):
                problems.append(f"{decision} takes {member}, which is ahead: {turns}")
            turns[member.worker] += 1
    return problems


def _kept(world: World) -> list[str]:
    """Who was told that its contribution is whole on every shard, and stayed, has it in the step."""
    if world.scenario.in_turn:
        return _kept_in_turn(world)
    decisions = {decision.id.round: decision for decision in world.course.decisions}
    stayed: dict[tuple[str, int], int] = {}
    for decision in decisions.values():
        for member in decision.members:
            stayed[member.worker, member.incarnation] = decision.id.round
    in_turn = {key for decision in decisions.values() for key, _ in keys_of(decision)}
    problems = []
    for answer in world.answers:
        if (*answer.member, -1, answer.sequence) in in_turn:
            continue  # the policy changed before its round was decided, and it had its turn
        if answer.status != "accepted" or stayed.get(answer.member, -1) <= answer.round:
            continue
        decided = decisions[answer.round]
        while _is_of_nobody(decided) and answer.member not in _known(decided.quarantined):
            decided = decisions[decided.id.round + 1]  # where it goes on to
        if answer.member not in _known((*decided.members, *decided.quarantined)):
            problems.append(f"{answer}, its worker stayed, and it was not counted: {decided}")
    return problems


def _is_of_nobody(decision: Decision) -> bool:
    return not decision.members and decision.outcome is Outcome.SKIPPED


def _known(members: Iterable[Member]) -> set[tuple[str, int]]:
    return {(member.worker, member.incarnation) for member in members}


def _kept_in_turn(world: World) -> list[str]:
    counted = {key for decision in world.course.decisions for key, _ in keys_of(decision)}
    return [
        f"{answer}, and it was not counted"
        for answer in world.answers
        if answer.status == "accepted" and (*answer.member, -1, answer.sequence) not in counted
    ]


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
