"""The page of an attribution study, and its heat maps in a notebook."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from iconoclast_tl.attribution.parts import Part
from iconoclast_tl.attribution.result import Attribution
from iconoclast_tl.attribution.study import Study
from iconoclast_tl.report.pages.frame import figure_page
from iconoclast_tl.report.tables.attribution import cell

LABELS = {
    "direct": "direct, target prompts",
    "direct-contrast": "direct, target − neutral",
    "gradient": "gradient at λ = 0",
    "integrated": "gradient integrated to the edit",
    "ablate": "ablated alone",
    "restore": "restored alone, the rest edited",
    "interchange": "target ← neutral",
    "interchange-back": "neutral ← target",
}


@dataclass(frozen=True, eq=False)
class AttributionReport:
    """A study with its figures; a notebook draws its heat maps."""

    study: Study
    top: int = 20

    def to_json(self) -> dict[str, Any]:
        """The contents of attribution.json."""
        return self.study.to_json()

    def _repr_html_(self) -> str:
        """The heat maps, as a notebook shows them."""
        return str(_heat_maps(self.study).to_html(full_html=False, include_plotlyjs=True))

    def page(self) -> str:
        """The contents of attribution.html; everything it needs is in it."""
        figures = [_heat_maps(self.study), *_by_position(self.study, self.top)]
        figures += [figure(self.study) for figure in (_curves, _accumulated)]
        shown = [figure for figure in figures if figure is not None]
        title = f"Attribution of {self.study.score}"
        return figure_page(title, summary(self.study), shown, _html_table(self.study, self.top))


def summary(study: Study) -> list[str]:
    """What the numbers mean, and what stands out."""
    target, neutral = float(study.target_scores.mean()), float(study.neutral_scores.mean())
    lines = [
        f"Under {study.edit}; direct attribution is along {study.direction}. Mean score of {len(study.target_scores)} "
        f"target prompts {target:.3g}, of their matched neutral ones {neutral:.3g}; the difference is {study.gap:.3g}. "
        "A value is what a part contributes to the score: positive where the score falls without it. Intervals: 95%, "
        "bootstrap over prompts."
    ]
    if study.overlooked:
        named = ", ".join(f"{one.part} ({one.method}: {one.effect:.0%} of the difference)" for one in study.overlooked)
        lines.append(f"Direct attribution overlooks: {named}.")
    elif study.overlooked is not None:
        lines.append("Direct attribution overlooks no part of large effect.")
    lines += study.warnings
    for one in study.agreements:
        (rho, low, high), (share, below, above) = one.rank_correlation, one.overlap
        lines.append(
            f"{one.one} and {one.other}: rank correlation {rho:.2f} [{low:.2f}, {high:.2f}], "
            f"first {one.k} in common {share:.0%} [{below:.0%}, {above:.0%}]."
        )
    return lines


def _html_table(study: Study, top: int) -> str:
    head = "".join(f"<th>{html.escape(LABELS[one.method])}</th>" for one in study.found)
    rows = "".join(
        f"<tr><td>{part}</td>{''.join(f'<td>{cell(one, part)}</td>' for one in study.found)}</tr>"
        for part in study.best.top(top)
    )
    return f"<table><tr><th>part</th>{head}</tr>{rows}</table>"


def _columns(parts: Sequence[Part]) -> list[str]:
    """The columns of a heat map: heads, then the other parts of a layer."""
    heads = max((part.head + 1 for part in parts if part.head is not None), default=0)
    others = [name for name in ("attn", "mlp", "bias", "embed") if any(part.component == name for part in parts)]
    return [*(f"H{head}" for head in range(heads)), *others]


def _heat_maps(study: Study) -> Any:
    """A map of layers × heads for every method, red where a part carries the behaviour."""
    from plotly.graph_objects import Heatmap
    from plotly.subplots import make_subplots

    n_columns = min(len(study.found), 2)
    n_rows = -(-len(study.found) // n_columns)
    titles = [LABELS[one.method] for one in study.found]
    figure = make_subplots(rows=n_rows, cols=n_columns, subplot_titles=titles, vertical_spacing=0.25 / max(n_rows, 1))
    for number, one in enumerate(study.found):
        grid, words, columns = _grid(one, study.n_layers)
        largest = max((abs(value) for row in grid for value in row if value is not None), default=1.0) or 1.0
        figure.add_trace(
            Heatmap(
                z=grid, x=columns, y=[f"L{layer}" for layer in range(len(grid))], text=words, hoverinfo="text",
                colorscale="RdBu_r", zmin=-largest, zmax=largest, showscale=False,
            ),
            row=number // n_columns + 1,
            col=number % n_columns + 1,
        )  # fmt: skip
    figure.update_layout(height=max(320, 14 * (study.n_layers + 1) + 130) * n_rows, title="By layer and head")
    return figure


def _grid(found: Attribution, n_layers: int) -> tuple[list[list[float | None]], list[list[str]], list[str]]:
    """Values, hover texts and column names; the constants after the last layer have a row of their own."""
    columns = _columns(found.parts)
    n_rows = max(n_layers, 1 + max(part.layer for part in found.parts))
    grid: list[list[float | None]] = [[None] * len(columns) for _ in range(n_rows)]
    words = [[""] * len(columns) for _ in range(n_rows)]
    for place, part in enumerate(found.parts):
        column = columns.index(f"H{part.head}" if part.head is not None else part.component)
        low, high = found.intervals[place].tolist()
        grid[part.layer][column] = float(found.means[place])
        words[part.layer][column] = f"{part}: {float(found.means[place]):.3g} [{low:.3g}, {high:.3g}]"
    return grid, words, columns


def _by_position(study: Study, top: int) -> list[Any]:
    """A map of parts × positions for every method that has values by position."""
    from plotly.graph_objects import Figure, Heatmap

    figures = []
    for one in study.found:
        if one.by_position is None:
            continue
        parts = one.top(top)
        values = one.by_position.values[:, [one.parts.index(part) for part in parts]].T
        largest = float(values.abs().max()) or 1.0
        trace = Heatmap(
            z=values.tolist(), x=list(one.by_position.positions), y=[str(part) for part in parts],
            colorscale="RdBu_r", zmin=-largest, zmax=largest,
        )  # fmt: skip
        figure = Figure(trace)
        figure.update_layout(
            title=f"By position: {LABELS[one.method]}", height=20 * len(parts) + 180,
            xaxis_title="position, 0 is the prompt's last token", yaxis_autorange="reversed",
        )  # fmt: skip
        figures.append(figure)
    return figures


def _curves(study: Study) -> Any:
    """The score that is left when the first k heads are ablated together."""
    from plotly.graph_objects import Figure, Scatter

    if not study.curves:
        return None
    figure = Figure()
    for curve in study.curves:
        points = curve.to_json()["points"]
        errors = {"type": "data", "symmetric": False}
        above = [point["high"] - point["score"] for point in points]
        below = [point["score"] - point["low"] for point in points]
        figure.add_trace(
            Scatter(
                x=[point["k"] for point in points], y=[point["score"] for point in points], mode="lines+markers",
                name=LABELS[curve.method], error_y={**errors, "array": above, "arrayminus": below},
            )
        )  # fmt: skip
    figure.add_hline(y=float(study.neutral_scores.mean()), line_dash="dot", annotation_text="neutral prompts")
    figure.update_layout(
        title="The first k heads ablated together (λ = 1), by each method's ranking",
        xaxis_title="heads", yaxis_title=f"{study.score} on target prompts",
    )  # fmt: skip
    return figure


def _accumulated(study: Study) -> Any:
    """The mean projection on v, from layer to layer; None where no activations were given."""
    from plotly.graph_objects import Figure, Scatter

    if not study.accumulated:
        return None
    figure = Figure()
    for side, values in study.accumulated.items():
        figure.add_trace(Scatter(x=list(range(len(values))), y=values.tolist(), mode="lines+markers", name=side))
    figure.update_layout(
        title="Mean projection on v at the last token", xaxis_title="residual point", yaxis_title="vᵀ r"
    )
    return figure
