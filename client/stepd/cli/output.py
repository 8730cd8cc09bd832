"""What commands write: tables, lists of fields, JSON. Framed on a terminal, plain and aligned elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def _console() -> Console:
    # Rich takes a while, and what is written as JSON does not need it.
    from rich.console import Console  # noqa: PLC0415

    return Console()


def clean(text: str) -> str:
    """Text from a server without control characters: it must not move the cursor or fake a line."""
    return "".join(character if character.isprintable() else "?" for character in text)


def line(text: str = "") -> None:
    sys.stdout.write(clean(text) + "\n")


def document(value: Any) -> None:
    """One JSON document."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Iterable[str] = ()) -> None:
    """Rows under headings; the columns of `numbers` are aligned to the right."""
    right = {index for index, heading in enumerate(headings) if heading in set(numbers)}
    cells = [[clean(cell) for cell in row] for row in rows]
    console = _console()
    if console.is_terminal:
        from rich import box  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        drawn = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False)
        for index, heading in enumerate(headings):
            drawn.add_column(heading, justify="right" if index in right else "left")
        for row in cells:
            drawn.add_row(*(Text(cell) for cell in row))
        console.print(drawn)
        return
    everything = [[heading.upper() for heading in headings], *cells]
    widths = [max(len(row[index]) for row in everything) for index in range(len(headings))]
    for row in everything:
        aligned = (
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        sys.stdout.write("  ".join(aligned).rstrip() + "\n")


def fields(pairs: Iterable[tuple[str, str]]) -> None:
    """A name and a value on each line."""
    shown = [(name, clean(value)) for name, value in pairs]
    width = max(len(name) for name, _ in shown)
    console = _console()
    for name, value in shown:
        if console.is_terminal:
            from rich.text import Text  # noqa: PLC0415

            console.print(Text.assemble((name.ljust(width), "dim"), "  ", value), soft_wrap=True)
        else:
            sys.stdout.write(f"{name.ljust(width)}  {value}\n")


def size(count: int) -> str:
    """Bytes as a reader wants them: 812.0 KiB."""
    amount, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while amount >= 1024 and len(units) > 1:
        amount /= 1024
        units.pop(0)
    return f"{count} B" if units[0] == "B" else f"{amount:.1f} {units[0]}"
