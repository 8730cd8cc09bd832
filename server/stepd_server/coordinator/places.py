"""What others see of a run's members, and of the places that are empty. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from stepd.v1 import coordinator_pb2
from stepd_server.coordinator import convert
from stepd_server.coordinator.seats import Gone, Seat

Places = Iterable[tuple[int, Gone | None]]


def worker_state(
    seat: Seat, now: float, awaited: float | None, counts: Mapping[str, int]
) -> coordinator_pb2.WorkerState:
    """Args:
    seat: the member's.
    now: on the steady clock.
    awaited: for how many seconds the round has waited for its contribution; None: it does not.
    counts: of its contributions, by status.
    """
    return coordinator_pb2.WorkerState(
        member=convert.member_to_proto(seat.member),
        joined_at=timestamp(seat.joined_at),
        metrics=seat.metrics,
        awaited=None if awaited is None else duration(awaited),
        silent=duration(now - seat.heard),
        lease=duration(seat.lease),
        contributions=coordinator_pb2.ContributionCounts(**counts),
    )


def missing(places: Places, now: float) -> Iterator[coordinator_pb2.MissingWorker]:
    """Empty places, by rank."""
    for rank, gone in places:
        if gone is None:
            yield coordinator_pb2.MissingWorker(rank=rank)
        else:
            yield coordinator_pb2.MissingWorker(
                member=convert.member_to_proto(gone.member), rank=rank, since=duration(now - gone.at), why=gone.why
            )


def missing_text(places: Places, now: float) -> str:
    """The same for people: "worker-2 (rank 2) is gone since 12 s: its lease of 10 s has run out"."""
    texts = [
        f"{gone.member.worker} (rank {rank}) is gone since {now - gone.at:.0f} s: {gone.why}"
        if gone
        else f"nobody has joined with rank {rank}"
        for rank, gone in places
    ]
    shown = texts[:_SHOWN]
    return "; ".join(shown) + (f"; and {len(texts) - len(shown)} more" if len(texts) > len(shown) else "")


# A sentence for people names no more.
_SHOWN = 4


def timestamp(seconds: float) -> Timestamp:
    message = Timestamp()
    message.FromNanoseconds(int(seconds * 1e9))
    return message


def duration(seconds: float) -> Duration:
    message = Duration()
    message.FromNanoseconds(int(max(seconds, 0.0) * 1e9))
    return message
