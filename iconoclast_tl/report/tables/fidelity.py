"""The table of a fold's fidelity: preview, adapter and merged weights against each other, as wholes and by module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def fidelity_table(fidelity: Mapping[str, Any]) -> Table:
    """Differences between preview and folded model, and the share of the direction that is left.

    Of logits they are absolute; of a module relative to what the edit changes there.
    """
    table = Table(title=f"fidelity on {fidelity['n']} test prompts", title_justify="left")
    for column in ("", "largest difference", "tolerance", "ok"):
        table.add_column(column, justify="left" if not column else "right")
    merged = f"preview = merged, {fidelity.get('merged_dtype', 'in the dtype of the run')}"
    for key, label, measured in (
        ("preview_vs_adapter", "preview = adapter, any logit", "max_abs_logit_diff"),
        ("adapter_by_module", "the same, any module", "max_relative_error"),
        ("preview_vs_merged", f"{merged}, any logit", "max_abs_logit_diff"),
        ("merged_by_module", "the same, any module", "max_relative_error"),
        ("on_quantised", "preview = adapter, quantised, any logit", "max_abs_logit_diff"),
    ):
        if fidelity.get(key):  # runs of earlier versions say nothing of modules
            row = fidelity[key]
            table.add_row(label, f"{row[measured]:.1e}", f"{row['tolerance']:.0e}", _yes(row["ok"]))
    table.add_row("preview ≠ base, any logit", f"{fidelity['preview_vs_base']:.1e}", "", "")
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
