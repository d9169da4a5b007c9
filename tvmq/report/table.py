"""What all reports have in common: tables of text, and numbers for people."""

from __future__ import annotations

from collections.abc import Collection, Sequence

__all__ = ["byte_count", "count", "duration", "percent", "table"]


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    numeric: Collection[str] = (),
    total: Sequence[str] | None = None,
) -> list[str]:
    """Columns of text under a header.

    Parameters
    ----------
    header : sequence of str
        Names of the columns.
    rows : sequence of sequence of str
        Cells, as many in each row as there are columns.
    numeric : collection of str
        Names of the columns that are aligned right.
    total : sequence of str, optional
        A last row, under a rule.

    Returns
    -------
    list of str
        Lines.
    """
    cells = [header, *rows, *([total] if total is not None else [])]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if name in numeric else cell.ljust(width)
            for name, cell, width in zip(header, row, widths, strict=True)
        ]
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * width for width in widths)
    body = [line(header), rule, *map(line, rows)]
    return body if total is None else [*body, rule, line(total)]


def percent(share: float | None) -> str:
    """A share of 0 to 1, such as ``"12.3 %"``; ``"-"`` for None."""
    return "-" if share is None else f"{100 * share:.1f} %"


def duration(seconds: float | None) -> str:
    """A time of seconds to hours, such as ``"3.2 s"`` or ``"1 h 05 min"``; ``"-"`` for None."""
    if seconds is None:
        return "-"
    if seconds < 99.95:
        return f"{seconds:.1f} s" if seconds >= 0.095 else f"{1e3 * seconds:.0f} ms"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def byte_count(number: int) -> str:
    """A size, such as ``"23.4 kB"``."""
    if number < 10_000:
        return f"{number} B"
    return f"{number / 1e3:.1f} kB" if number < 10_000_000 else f"{number / 1e6:.1f} MB"


def count(number: int) -> str:
    """A large number, such as ``"1.82 G"``."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.2f} {unit}"
    return str(number)
