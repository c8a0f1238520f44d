"""Tables of directions: separation by point, agreement, and the candidates of a selection."""

from __future__ import annotations

from rich.table import Table

from iconoclast_tl.directions.diagnostics import Diagnostics, Interval
from iconoclast_tl.directions.estimators.sample import Fact
from iconoclast_tl.selection.rules import Selection


def directions_table(found: Diagnostics) -> Table:
    """Norms and separation, one row per residual point."""
    table = Table(title=f"directions by {found.estimator}", title_justify="left")
    for name in ("point", "k", "‖μ_B − μ_G‖", "‖μ_G‖", "d′ on val", "AUROC on val"):
        table.add_column(name, justify="right")
    for row in found.points:
        cells = [f"{row.difference_norm:.3f}", f"{row.neutral_norm:.2f}", "no direction", ""]
        if row.defined:
            cells[2:] = [interval_text(row.separation), interval_text(row.auroc)]
        table.add_row(str(row.point), str(row.n_directions), *cells, style="bold" if row.point == found.best else None)
    several = any(row.n_directions > 1 for row in found.points)
    first = "; d′, AUROC: of the first of them" if several else ""
    table.caption = f"best: point {found.best}, {found.points[found.best].hook}; k: directions of a point{first}"
    return table


def agreement_table(found: Diagnostics) -> Table:
    """How stable each point's direction is, and its cosines with others."""
    table = Table(title="agreement", title_justify="left")
    facts = dict.fromkeys(
        name for row in found.points for name, value in row.facts.items() if not isinstance(value, str)
    )
    for name in ("point", "silh.", "pairs", "stable", "prev.", *found.points[0].cosines, *facts):
        table.add_column(name.replace("-", "-\n").replace("_", " "), justify="right")
    for row in found.points:
        if row.defined:
            cells = [row.silhouette, row.pair_agreement, row.stability, row.cosine_previous, *row.cosines.values()]
            shown = ["" if value is None else f"{value:.2f}" for value in cells]
            shown += [_fact(row.facts.get(name)) for name in facts]
            table.add_row(str(row.point), *shown, style="bold" if row.point == found.best else None)
    table.caption = (
        "silh.: silhouette of target and neutral prompts; pairs: mean cosine of paired differences; stable: mean "
        "|cosine| over resampled train prompts; cosines with the point before and with other estimators"
        + (f"; {', '.join(facts).replace('_', ' ')}: reported by {found.estimator} itself" if facts else "")
    )
    return table


def candidates_table(selection: Selection, most: int = 12) -> Table:
    """The candidates that were left, best first, and how many each rule removed."""
    table = Table(title=f"selection by {selection.rule}: {selection.chosen}", title_justify="left")
    scores = {
        "bypass": "bypass",
        "induce": "induce",
        "kl": "KL",
        "to_neutral": "to\nneutral",
        "to_target": "to\ntarget",
    }
    shown = [name for name in scores if any(getattr(one, name) is not None for one in selection.ranked)]
    for name in ("pos.", "point", "d′", "AUROC", *(scores[name] for name in shown)):
        table.add_column(name, justify="right")
    for one in selection.ranked[:most]:
        cells = ["" if getattr(one, name) is None else f"{getattr(one, name):.3f}" for name in shown]
        table.add_row(str(one.position), str(one.point), f"{one.d_prime:.2f}", f"{one.auroc:.3f}", *cells)
    lines = [f"{len(selection.ranked)} of {len(selection.table)} candidates left"]
    lines += [f"removed: {', '.join(f'{n} by {reason}' for reason, n in selection.removed.items())}"]
    lines += [f"unedited: {', '.join(f'{name} {value:.2f}' for name, value in selection.base.items())}"]
    table.caption = "; ".join(line for line in lines if not line.endswith(": "))
    return table


def _fact(value: Fact | None) -> str:
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def interval_text(value: Interval) -> str:
    """A number with the ends of its interval."""
    return f"{value[0]:.2f} [{value[1]:.2f}, {value[2]:.2f}]"
