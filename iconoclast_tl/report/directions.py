"""Directions to look at: a table, and a page that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from iconoclast_tl.directions.diagnostics import Diagnostics, Interval, PointDiagnostics
from iconoclast_tl.directions.estimators.sample import Fact
from iconoclast_tl.directions.selection import Selection
from iconoclast_tl.report.page import figure_page


@dataclass(frozen=True)
class DirectionsReport:
    """Diagnostics, and what was selected among, with their pictures; in a notebook it shows itself."""

    diagnostics: Diagnostics
    selection: Selection | None
    """None of directions that came from a file."""

    def to_json(self) -> dict[str, Any]:
        """As `directions --json` prints it."""
        return {**self.diagnostics.to_json(), "selection": self.selection and self.selection.to_json()}

    def _repr_html_(self) -> str:
        """What a notebook shows: separation by point."""
        return str(_separation(self.diagnostics).to_html(full_html=False, include_plotlyjs=True))

    def page(self) -> str:
        """The contents of directions.html; everything it needs is in it."""
        found = self.diagnostics
        figures = [_separation(found), _norms(found), _agreement(found), _between_points(found)]
        figures += [_between_estimators(found), _along_best(found)]
        figures += _candidates(self.selection) if self.selection is not None else []
        return figure_page(f"Directions by {found.estimator}", summary(self), figures)


def summary(report: DirectionsReport) -> list[str]:
    """What the numbers mean, and what was chosen."""
    found, selection = report.diagnostics, report.selection
    here = found.points[found.best]
    chose = (
        ""
        if selection is None
        else f"{selection.rule} chose {selection.chosen} among {len(selection.table)} candidates"
    )
    return [
        f"Directions by {found.estimator}, point by point: point p is what enters layer p, the last "
        "one what leaves the last layer, before the final norm. They were estimated on train prompts; separation is "
        "that of val prompts, with 95% bootstrap intervals.",
        f"{chose or f'best separating point {found.best}'}: d′ {_interval(here.separation)}, "
        f"AUROC {_interval(here.auroc)}.",
    ]


def directions_table(found: Diagnostics) -> Table:
    """Norms and separation, one row per residual point."""
    table = Table(title=f"directions by {found.estimator}", title_justify="left")
    for name in ("point", "k", "‖μ_B − μ_G‖", "‖μ_G‖", "d′ on val", "AUROC on val"):
        table.add_column(name, justify="right")
    for row in found.points:
        cells = [f"{row.difference_norm:.3f}", f"{row.neutral_norm:.2f}", "no direction", ""]
        if row.defined:
            cells[2:] = [_interval(row.separation), _interval(row.auroc)]
        table.add_row(str(row.point), str(row.n_directions), *cells, style="bold" if row.point == found.best else None)
    several = any(row.n_directions > 1 for row in found.points)
    first = "; d′, AUROC: of the first of them" if several else ""
    table.caption = f"best: point {found.best}, {found.points[found.best].hook}; k: directions of a point{first}"
    return table


def agreement_table(found: Diagnostics) -> Table:
    """How sure one may be of each point's direction, and its cosines with others."""
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
        + (f"; {', '.join(facts).replace('_', ' ')}: what {found.estimator} says itself" if facts else "")
    )
    return table


def _fact(value: Fact | None) -> str:
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def _interval(value: Interval) -> str:
    return f"{value[0]:.2f} [{value[1]:.2f}, {value[2]:.2f}]"


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


def _lines(title: str, x: str, y: str) -> Any:
    from plotly.graph_objects import Figure

    figure = Figure()
    figure.update_layout(title=title, xaxis_title=x, yaxis_title=y)
    return figure


def _trace(points: Sequence[PointDiagnostics], values: Sequence[Any], name: str, ends: Sequence[Interval] = ()) -> Any:
    from plotly.graph_objects import Scatter

    errors = None
    if ends:
        above, below = [high - value for value, _, high in ends], [value - low for value, low, _ in ends]
        errors = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
    return Scatter(x=[one.point for one in points], y=list(values), mode="lines+markers", name=name, error_y=errors)


def _separation(found: Diagnostics) -> Any:
    """d′ and AUROC of held-out prompts, point by point."""
    points = [one for one in found.points if one.defined]
    figure = _lines("Separation of val prompts", "residual point", "d′")
    figure.add_trace(_trace(points, [one.separation[0] for one in points], "d′", [one.separation for one in points]))
    share = _trace(points, [one.auroc[0] for one in points], "AUROC (right)", [one.auroc for one in points])
    figure.add_trace(share.update(yaxis="y2"))
    figure.update_layout(yaxis2={"overlaying": "y", "side": "right", "range": [0, 1.05]})
    figure.add_vline(x=found.best, line_dash="dot", annotation_text="chosen")
    return figure


def _norms(found: Diagnostics) -> Any:
    figure = _lines("Norms", "residual point", "norm")
    figure.add_trace(_trace(found.points, [one.difference_norm for one in found.points], "‖μ_B − μ_G‖"))
    figure.add_trace(_trace(found.points, [one.neutral_norm for one in found.points], "‖μ_G‖"))
    figure.update_yaxes(type="log")
    return figure


def _agreement(found: Diagnostics) -> Any:
    """How sure one may be of a direction, and what others would say."""
    points = [one for one in found.points if one.defined]
    figure = _lines("Agreement", "residual point", "cosine, or silhouette")
    figure.add_trace(_trace(points[1:], [one.cosine_previous for one in points[1:]], "with the point before"))
    figure.add_trace(_trace(points, [one.silhouette for one in points], "silhouette of the two sets"))
    figure.add_trace(_trace(points, [one.pair_agreement for one in points], "paired differences"))
    if points and points[0].stability is not None:
        figure.add_trace(_trace(points, [one.stability for one in points], "bootstrap stability"))
    accuracies = [one.facts.get("accuracy") for one in points]
    if any(value is not None for value in accuracies):
        figure.add_trace(_trace(points, accuracies, "accuracy of the probe"))
    for name in points[0].cosines if points else ():
        figure.add_trace(_trace(points, [one.cosines[name] for one in points], f"with {name}"))
    return figure


def _heat_map(title: str, names: Sequence[str], values: Sequence[Sequence[float]]) -> Any:
    from plotly.graph_objects import Figure, Heatmap

    figure = Figure(Heatmap(z=values, x=list(names), y=list(names), colorscale="RdBu_r", zmin=-1, zmax=1))
    figure.update_layout(title=title, yaxis_autorange="reversed", height=max(360, 14 * len(names) + 160))
    figure.update_xaxes(type="category")
    figure.update_yaxes(type="category")
    return figure


def _between_points(found: Diagnostics) -> Any:
    names = [str(one.point) for one in found.points]
    return _heat_map("Cosines of the directions of every two points", names, found.between_points.tolist())


def _between_estimators(found: Diagnostics) -> Any:
    names, cosines = found.between_estimators
    return _heat_map(f"Cosines of estimators at point {found.best}", names, cosines.tolist())


def _along_best(found: Diagnostics) -> Any:
    """How the prompts lie along the chosen direction."""
    from plotly.graph_objects import Histogram

    figure = _lines(f"Val prompts along the direction of point {found.best}", "vᵀ r", "prompts")
    for side, values in found.along_best.items():
        figure.add_trace(Histogram(x=values.tolist(), name=side, opacity=0.6, nbinsx=40))
    figure.update_layout(barmode="overlay")
    return figure


def _candidates(selection: Selection) -> list[Any]:
    """What the rule went by, of every candidate at every position."""
    from plotly.graph_objects import Scatter

    names = {"arditi": ("bypass", "induce", "kl"), "cosmic": ("to_neutral", "to_target", "kl")}
    shown = names.get(selection.rule, ("d_prime",) if len({one.position for one, _ in selection.table}) > 1 else ())
    figures = []
    for name in shown:
        figure = _lines(f"Candidates: {name}", "residual point", name)
        for position in sorted({one.position for one, _ in selection.table}, reverse=True):
            mine = [one for one, _ in selection.table if one.position == position]
            values = [getattr(one, name) for one in mine]
            figure.add_trace(
                Scatter(x=[one.point for one in mine], y=values, mode="lines+markers", name=f"position {position}")
            )
        figures.append(figure)
    return figures
