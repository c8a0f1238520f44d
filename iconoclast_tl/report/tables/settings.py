"""The table of effective settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table


def settings_table(rows: Sequence[tuple[str, Any, str]]) -> Table:
    """Every setting, its value, and where it came from."""
    table = Table(title="effective settings", title_justify="left")
    for column in ("setting", "value", "from"):
        table.add_column(column, overflow="fold")
    for key, value, source in rows:
        table.add_row(key, "" if value is None else str(value), source)
    return table
