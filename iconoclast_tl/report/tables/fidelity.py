"""The table of a fold's fidelity: preview, adapter and merged weights against each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def fidelity_table(fidelity: Mapping[str, Any]) -> Table:
    """Differences between preview and folded model, and the share of the direction that is left."""
    table = Table(title=f"fidelity on {fidelity['n']} test prompts", title_justify="left")
    for column in ("", "max |Δ logit|", "tolerance", "ok"):
        table.add_column(column, justify="left" if not column else "right")
    for key, label in (
        ("preview_vs_adapter", "preview = adapter"),
        ("preview_vs_merged", f"preview = merged, {fidelity.get('merged_dtype', 'in the dtype of the run')}"),
        ("on_quantised", "preview = adapter, quantised"),
    ):
        if fidelity.get(key):
            row = fidelity[key]
            table.add_row(label, f"{row['max_abs_logit_diff']:.2e}", f"{row['tolerance']:.0e}", _yes(row["ok"]))
    table.add_row("preview ≠ base", f"{fidelity['preview_vs_base']:.2e}", "", "")
    table.caption = edited_line(fidelity)
    if stream := fidelity.get("stream_fraction"):
        table.caption += f"; in what layers add to the stream: {min(stream):.3f} to {max(stream):.3f}"
    return table


def edited_line(edited: Mapping[str, Any]) -> str:
    """How many matrices were edited, and how much of the direction they keep."""
    shares, n = list(edited["residual_fraction"].values()), edited["n_matrices"]
    if not shares:
        return f"{n} {'bias' if n == 1 else 'biases'} edited, no matrix: an addition alone"
    return f"{n} matrices edited; share of the direction left in them: {min(shares):.3f} to {max(shares):.3f}"


def _yes(ok: bool) -> str:
    return "yes" if ok else "NO"
