"""Tables of prompts: the positions after the instruction, and responses side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text


def positions_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The positions at which residuals can be collected, and the template's tokens there."""
    table = Table(title="positions after the instruction", title_justify="left")
    for column in ("position", "token id", "token"):
        table.add_column(column, justify="left" if column == "token" else "right")
    for row in rows:
        token = "the prompt's own last token" if row["token_id"] is None else repr(row["text"])
        table.add_row(str(row["position"]), "" if row["token_id"] is None else str(row["token_id"]), Text(token))
    return table


def responses_table(rows: Sequence[tuple[str, str, str, str]]) -> Table:
    """(set, prompt, base, edited) side by side."""
    table = Table(title="responses", title_justify="left", show_lines=True)
    for column in ("set", "prompt", "base", "edited"):
        table.add_column(column, overflow="fold", ratio=None if column == "set" else 1)
    for row in rows:
        table.add_row(*row)
    return table
