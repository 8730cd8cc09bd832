"""What can go wrong, as exceptions; and the one table that ties them to gRPC codes and reasons.

A server raises one of these; at its rim the table turns it into a status with one google.rpc.ErrorInfo, and the client
turns that back into the same class. `reason` is for programs, the message for people, `details` for both.
"""

from __future__ import annotations

from typing import ClassVar, Final

__all__ = [
    "ERROR_TABLE",
    "AlreadyExists",
    "CheckpointCorrupt",
    "DeadlineExceeded",
    "DtypeMismatch",
    "FailedPrecondition",
    "InvalidArgument",
    "MissingGradient",
    "NonFiniteGradient",
    "NotFound",
    "OverlappingGroups",
    "PermissionDenied",
    "ResourceExhausted",
    "RunRewound",
    "ShapeMismatch",
    "StepdError",
    "Unauthenticated",
    "Unavailable",
    "UnknownParameter",
]


class StepdError(Exception):
    """Base of all errors of stepd.

    Attributes:
        reason: what happened, UPPER_SNAKE, stable.
        details: the values in the message, by name.
        code: the name of the gRPC code that carries it.
    """

    default_reason: ClassVar[str] = "INTERNAL"
    code: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, *, reason: str | None = None, **details: object) -> None:
        super().__init__(message)
        self.reason: str = reason or self.default_reason
        self.details: dict[str, object] = details

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling, and users' process pools pickle errors.
        return (_rebuild, (type(self), str(self), self.reason, self.details))


def _rebuild(kind: type[StepdError], message: str, reason: str, details: dict[str, object]) -> StepdError:
    return kind(message, reason=reason, **details)


class InvalidArgument(StepdError, ValueError):
    """A value that can never be right."""

    default_reason = "INVALID_ARGUMENT"
    code = "INVALID_ARGUMENT"


class ShapeMismatch(InvalidArgument):
    """An array has another shape than its parameter."""

    default_reason = "SHAPE_MISMATCH"


class DtypeMismatch(InvalidArgument):
    """An array has a dtype that its parameter does not take."""

    default_reason = "DTYPE_MISMATCH"


class UnknownParameter(InvalidArgument):
    """A name that is not a parameter of the run."""

    default_reason = "UNKNOWN_PARAMETER"


class MissingGradient(InvalidArgument):
    """A contribution leaves a parameter out, and the run was created with missing="error"."""

    default_reason = "MISSING_GRADIENT"


class OverlappingGroups(InvalidArgument):
    """A parameter stands in more than one group."""

    default_reason = "OVERLAPPING_GROUPS"


class NotFound(StepdError):
    """No run, worker or checkpoint of that name."""

    default_reason = "NOT_FOUND"
    code = "NOT_FOUND"


class AlreadyExists(StepdError):
    """The name is taken."""

    default_reason = "ALREADY_EXISTS"
    code = "ALREADY_EXISTS"


class Unauthenticated(StepdError):
    """No valid token."""

    default_reason = "UNAUTHENTICATED"
    code = "UNAUTHENTICATED"


class PermissionDenied(StepdError):
    """The token is valid but not for this."""

    default_reason = "PERMISSION_DENIED"
    code = "PERMISSION_DENIED"


class FailedPrecondition(StepdError):
    """Right in itself, but not in the state things are in; trying again without a change does not help."""

    default_reason = "FAILED_PRECONDITION"
    code = "FAILED_PRECONDITION"


class NonFiniteGradient(FailedPrecondition):
    """A gradient with a NaN or an infinity, and the run was created with on_nonfinite="error"."""

    default_reason = "NONFINITE_GRADIENT"


class ResourceExhausted(StepdError):
    """Over a limit; the message names it."""

    default_reason = "RESOURCE_EXHAUSTED"
    code = "RESOURCE_EXHAUSTED"


class CheckpointCorrupt(StepdError):
    """A checkpoint whose bytes are not what was written."""

    default_reason = "CHECKPOINT_CORRUPT"
    code = "DATA_LOSS"


class RunRewound(StepdError):
    """The fleet went back to a checkpoint; `step` says where it is now."""

    default_reason = "RUN_REWOUND"
    code = "ABORTED"

    @property
    def step(self) -> int:
        return int(str(self.details.get("step", 0)))


class Aborted(StepdError):
    """This try is over, the next may succeed: the library tries again by itself. Not seen by users."""

    default_reason = "ABORTED"
    code = "ABORTED"


class Unavailable(StepdError):
    """No answer, or not yet ready; the library has tried again for `retry_for` seconds."""

    default_reason = "UNAVAILABLE"
    code = "UNAVAILABLE"


class DeadlineExceeded(StepdError):
    """It took longer than was allowed; what became of it is not known."""

    default_reason = "DEADLINE_EXCEEDED"
    code = "DEADLINE_EXCEEDED"


# reason -> class. A reason appears once; the class gives the gRPC code.
# A class's own default reason is always in it; further reasons are told apart by programs without a class of their own.
ERROR_TABLE: Final[dict[str, type[StepdError]]] = {
    "INVALID_ARGUMENT": InvalidArgument,
    "SHAPE_MISMATCH": ShapeMismatch,
    "DTYPE_MISMATCH": DtypeMismatch,
    "UNKNOWN_PARAMETER": UnknownParameter,
    "MISSING_GRADIENT": MissingGradient,
    "OVERLAPPING_GROUPS": OverlappingGroups,
    "NONFINITE_PARAMETER": InvalidArgument,  # an initial parameter holds a NaN or an infinity
    "UNKNOWN_RULE": InvalidArgument,  # an optimizer or schedule that this server does not have
    "BAD_CHUNK": InvalidArgument,  # a chunk out of order, past the end, or with a size that does not fit
    "NOT_FOUND": NotFound,
    "RUN_NOT_FOUND": NotFound,
    "ALREADY_EXISTS": AlreadyExists,
    "UNAUTHENTICATED": Unauthenticated,
    "PERMISSION_DENIED": PermissionDenied,
    "FAILED_PRECONDITION": FailedPrecondition,
    "RUN_FULL": FailedPrecondition,  # the run takes an exact number of workers and has them
    "RANK_TAKEN": FailedPrecondition,
    "RUN_NOT_STARTED": FailedPrecondition,  # its initial parameters are not all loaded
    "RUN_DIFFERS": FailedPrecondition,  # exist_ok, but the run has other parameters
    "RUN_LOST": FailedPrecondition,  # a shard lost its part of the run
    "NOT_A_MEMBER": FailedPrecondition,  # the membership has ended and cannot be had back; the message says why
    "RATE_FIXED": FailedPrecondition,  # the schedule gives a rate that does not depend on the group's
    "NO_AVERAGE": FailedPrecondition,  # averages were asked for, and neither the run nor its rules keep any
    "TRANSPORT_UNAVAILABLE": FailedPrecondition,  # transport="shm", and a shard cannot share memory with this worker
    "NOT_SHARED": FailedPrecondition,  # the shard does not share memory with this worker (any more): send instead
    "NONFINITE_GRADIENT": NonFiniteGradient,
    "RESOURCE_EXHAUSTED": ResourceExhausted,
    "CHECKPOINT_CORRUPT": CheckpointCorrupt,
    "RUN_REWOUND": RunRewound,
    "ABORTED": Aborted,
    "ROUND_RESTARTED": Aborted,  # send again under the attempt in the details
    "ROUND_PENDING": Aborted,  # not decided yet: ask again; the details name who is missing
    "LAYOUT_CHANGED": Aborted,  # a group was added: ask for the new layout and send again
    "VERSION_PASSED": Aborted,  # the version asked for has been overwritten; the details hold the present one
    "UNAVAILABLE": Unavailable,
    "FLEET_INCOMPLETE": Unavailable,  # shards have yet to register
    "PLACE_HELD": Unavailable,  # by a worker that may be dead: its lease has yet to run out, or it to be heard of
    "GROUP_PENDING": Unavailable,  # another group is being added to the run
    "RUN_RECOVERING": Unavailable,  # a shard of the run is away
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "INTERNAL": StepdError,
}
