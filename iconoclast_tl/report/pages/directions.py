"""The page of estimated directions, and their separation in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from iconoclast_tl.directions.diagnostics import Diagnostics, Interval, PointDiagnostics
from iconoclast_tl.report.pages.frame import figure_page
from iconoclast_tl.report.tables.directions import interval_text
from iconoclast_tl.selection.rules import Selection


@dataclass(frozen=True)
class DirectionsReport:
    """Diagnostics and the candidates of the selection, with their figures; a notebook draws the separation by point."""

    diagnostics: Diagnostics
    selection: Selection | None
    """None where the directions came from a file."""

    def to_json(self) -> dict[str, Any]:
        """As `directions --json` prints it."""
        return {**self.diagnostics.to_json(), "selection": self.selection and self.selection.to_json()}

    def _repr_html_(self) -> str:
        """The separation by point, as a notebook shows it."""
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
        f"{chose or f'best separating point {found.best}'}: d′ {interval_text(here.separation)}, "
        f"AUROC {interval_text(here.auroc)}.",
    ]


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
    """How stable each direction is, and its cosines with others."""
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
    """The scores that the rule used, for every candidate."""
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
