"""What must hold of every history."""

from __future__ import annotations

from stepd.specs import run_from_proto
from stepd_server.coordinator.vocabulary import Outcome
from tests.simulator.model import Contradiction, Contributions, Key, Model
from tests.simulator.scenario import Scenario
from tests.simulator.world import World, history


def problems_of(world: World) -> list[str]:
    """Everything that is wrong with a history."""
    if world.problems or world.lost:
        return [*world.problems, *([f"the run is lost: {world.lost}"] if world.lost else [])]
    try:
        contributions = Contributions(world.layout)
        for call in world.pushes:
            contributions.add(int(call.channel.host.removeprefix("shard-")), call.sent)
        model = Model(run_from_proto(world.spec), world.masters)
        for decision in world.decisions:
            model.apply(decision, contributions)
    except Contradiction as error:
        return [str(error)]
    return [
        *_count(world, contributions),
        *_answers(world),
        *_reads(world, model),
        *_undisturbed(world),
    ]


def _count(world: World, contributions: Contributions) -> list[str]:
    """No contribution is in two steps."""
    if world.scenario.repeatable:
        return []  # there, two may well be the same; the result says whether one was counted twice
    seen: dict[bytes, Key] = {}
    problems = []
    for decision in world.decisions:
        for member in decision.members if decision.outcome is Outcome.APPLIED else ():
            key = (member.worker, member.incarnation, *decision.id)
            before = seen.setdefault(contributions.bytes_of(key), key)
            if before != key:
                problems.append(f"one contribution was counted as {before} and as {key}")
    return problems


def _answers(world: World) -> list[str]:
    """What workers were told of their contributions is what was decided."""
    by_round = {decision.id.round: decision for decision in world.decisions}
    problems = []
    for answer in world.answers:
        decision = by_round.get(answer.round)
        if decision is None:
            if answer.decided:
                problems.append(f"{answer} speaks of a round that was never decided")
            continue
        counted = answer.member in {(member.worker, member.incarnation) for member in decision.members}
        if answer.status in ("late", "stale", "quarantined") and counted:
            problems.append(f"{answer}, and it was counted: {decision}")
        if answer.status in ("accepted", "duplicate") and not counted and answer.decided:
            problems.append(f"{answer}, and it was not counted: {decision}")
    return problems


def _reads(world: World, model: Model) -> list[str]:
    """Whatever was read is one version of all parameters, the one it was said to be."""
    problems = []
    for read in world.reads:
        if read.step >= len(model.versions) or read.params != model.versions[read.step]:
            fits = [step for step, version in enumerate(model.versions) if version == read.params]
            problems.append(f"{read.who} read what was said to be step {read.step} and is {fits or 'no version'}")
    return problems


def _undisturbed(world: World) -> list[str]:
    """The bits are those of a history in which nothing goes wrong."""
    scenario: Scenario = world.scenario
    if not scenario.repeatable or not scenario.faults:
        return []
    calm = history(scenario.undisturbed())
    if calm.problems:
        return [f"undisturbed: {problem}" for problem in calm.problems]
    return [] if calm.final == world.final else ["the parameters are not those of the undisturbed run"]
