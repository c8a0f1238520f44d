"""The table of the doctor's checks."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from iconoclast_tl.doctor.checks import Check


def doctor_table(checks: Sequence[Check], title: str) -> Table:
    """Every check with what was measured, or why it was left out."""
    table = Table(title=title, title_justify="left")
    for column in ("check", "ok", "measured", "tolerance", "note"):
        table.add_column(column, justify="right" if column in ("measured", "tolerance") else "left")
    for check in checks:
        measured, tolerance = ("" if value is None else f"{value:.1e}" for value in (check.measured, check.tolerance))
        table.add_row(check.name, "–" if check.ok is None else _yes(check.ok), measured, tolerance, check.note)
    return table


def _yes(ok: bool) -> str:
    return "yes" if ok else "NO"
