"""The table of errors is whole, and documented."""

import pickle
from pathlib import Path

import pytest

from stepd import errors

CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.StepdError)]
DOCUMENT = Path(__file__).parents[2] / "docs" / "errors.md"


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_class_has_its_row(kind: type[errors.StepdError]) -> None:
    """The reason that a class has by default leads back to the class."""
    assert errors.ERROR_TABLE[kind.default_reason] is kind


@pytest.mark.parametrize("reason", errors.ERROR_TABLE)
def test_every_reason_is_documented(reason: str) -> None:
    """With its class and the gRPC code, in docs/errors.md."""
    kind = errors.ERROR_TABLE[reason]
    assert f"| `{reason}` | `{kind.__name__}` | {kind.code} |" in DOCUMENT.read_text()


def test_the_document_has_no_other_reasons() -> None:
    """A row for each reason, and no more."""
    rows = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| `")]
    assert len(rows) == len(errors.ERROR_TABLE)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_errors_survive_pickling(kind: type[errors.StepdError]) -> None:
    """Process pools hand exceptions over pickled."""
    error = kind("parameter 'w': expected (2,), got (3,)", reason="X", expected=(2,), given=(3,))
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.reason, again.details) == (kind, str(error), "X", error.details)


def test_invalid_arguments_are_value_errors() -> None:
    """Whoever catches ValueError around a constructor of torch.optim catches ours."""
    assert issubclass(errors.ShapeMismatch, ValueError)


def test_a_rewound_run_says_where_it_is() -> None:
    """Also when the step has come over the wire as text."""
    assert errors.RunRewound("the run went back", step="12").step == 12
    assert errors.RunRewound("the run went back").step == 0
