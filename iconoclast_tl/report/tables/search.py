"""The table of a search: its Pareto front, and the candidate that was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table


def pareto_table(pareto: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any], search: Mapping[str, Any]) -> Table:
    """The front on val by generated responses, with the search's own estimates; the chosen candidate is marked."""
    table = Table(title=f"Pareto front on val, {search['goal']} by {search['method']}", title_justify="left")
    for column in ("", "source", "behaviour rate", "spill rate", "KL", "proxy rate", "rate on train"):
        table.add_column(column, justify="right")
    taken = chosen["source"]
    for row in pareto:
        table.add_row(
            "→" if row["source"] == taken else "",
            row["source"],
            f"{row['behaviour_rate']:.1%}",
            f"{row['spill_rate']:.1%}",
            f"{row['kl']:.4f}",
            *("" if row[side] is None else f"{row[side]['behaviour_rate']:.1%}" for side in ("proxy", "train")),
        )
    captions = [f"→ chosen by {chosen['rule']}"]
    if taken not in [row["source"] for row in pareto]:
        captions = [f"chosen by {chosen['rule']}: {taken}, which is not on this front (it counts spill before KL)"]
    found = {side: value for side, value in (search.get("proxy_rank_correlation") or {}).items() if value is not None}
    if found:
        named = ", ".join(f"{value:.2f} ({side})" for side, value in found.items())
        captions.append(f"rank correlation of proxy and generated rate: {named}")
    table.caption = "; ".join(captions)
    return table
