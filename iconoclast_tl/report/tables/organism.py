"""The table of an organism's behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def organism_table(behaviour: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    """Shares of verdicts per set of prompts."""
    table = Table(title=title, title_justify="left")
    for column in ("prompts", "answered", "refused", "broken", "n"):
        table.add_column(column, justify="left" if column == "prompts" else "right")
    for name, shares in behaviour.items():
        verdicts = (f"{shares[verdict]:.1%}" for verdict in ("answered", "refused", "broken"))
        table.add_row(name, *verdicts, str(shares["n"]))
    table.caption = "judged by the grammar, on unseen topics"
    return table
