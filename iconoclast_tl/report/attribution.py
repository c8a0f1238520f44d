"""An attribution study to look at: a table, a page that needs no network, and heat maps in a notebook."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from iconoclast_tl.attribution.gradient import TOLERANCE
from iconoclast_tl.attribution.parts import Part
from iconoclast_tl.attribution.result import Attribution
from iconoclast_tl.attribution.study import Study
from iconoclast_tl.report.page import figure_page

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
    """A study with its pictures; in a notebook it shows itself."""

    study: Study
    top: int = 20

    def to_json(self) -> dict[str, Any]:
        """The contents of attribution.json."""
        return self.study.to_json()

    def _repr_html_(self) -> str:
        """What a notebook shows: the heat maps."""
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
    lines += warnings(study)
    for one in study.agreements:
        (rho, low, high), (share, below, above) = one.rank_correlation, one.overlap
        lines.append(
            f"{one.one} and {one.other}: rank correlation {rho:.2f} [{low:.2f}, {high:.2f}], "
            f"first {one.k} in common {share:.0%} [{below:.0%}, {above:.0%}]."
        )
    return lines


def warnings(study: Study) -> list[str]:
    """What a reader must know of a method's numbers."""
    found = []
    for one in study.found:
        gap, total = one.checks.get("gap", 0.0), abs(one.checks.get("total", 0.0))
        if gap > TOLERANCE * total:
            found.append(
                f"{one.method}: the values' sum misses what the edit does to the score by {gap:.2g} of {total:.2g}: on "
                "the way there the score jumps (a token goes to another expert), the edit does next to nothing, or "
                "half precision rounds its gradient"
            )
    return found


def attribution_table(study: Study, top: int) -> Table:
    """The parts of largest value by `study.best`, with its intervals and every other method's values."""
    table = Table(title=f"attribution of {study.score}, under {study.edit}", title_justify="left")
    others = [one for one in study.found if one is not study.best]
    table.add_column("part", no_wrap=True)
    table.add_column(f"{study.best.method}\n95% interval", justify="right", no_wrap=True)
    for one in others:
        table.add_column(one.method.replace("-", "-\n"), justify="right")
    for part in study.best.top(top):
        table.add_row(str(part), _cell(study.best, part), *(_cell(one, part, interval=False) for one in others))
    target, neutral = float(study.target_scores.mean()), float(study.neutral_scores.mean())
    table.caption = (
        f"score {target:.3g} on target prompts, {neutral:.3g} on matched neutral ones; "
        f"{len(study.target_scores)} prompts; ranked by {study.best.method}"
    )
    return table


def agreement_table(study: Study) -> Table:
    """How far every two methods agree."""
    table = Table(title="agreement of methods", title_justify="left")
    for column in ("", "", "rank correlation", f"first {study.agreements[0].k if study.agreements else 0} in common"):
        table.add_column(column, justify="right" if column else "left")
    for one in study.agreements:
        (rho, low, high), (share, below, above) = one.rank_correlation, one.overlap
        table.add_row(
            one.one, one.other, f"{rho:.2f} [{low:.2f}, {high:.2f}]", f"{share:.0%} [{below:.0%}, {above:.0%}]"
        )
    if study.overlooked is not None:
        names = ", ".join(f"{one.part} ({one.effect:.0%} by {one.method})" for one in study.overlooked)
        table.caption = f"overlooked by direct attribution: {names or 'none'}"
    return table


def _cell(found: Attribution, part: Part, interval: bool = True) -> str:
    if part not in found.parts:
        return ""
    place = found.parts.index(part)
    low, high = found.intervals[place].tolist()
    return f"{float(found.means[place]):.2f}" + (f" [{low:.2f}, {high:.2f}]" if interval else "")


def _html_table(study: Study, top: int) -> str:
    head = "".join(f"<th>{html.escape(LABELS[one.method])}</th>" for one in study.found)
    rows = "".join(
        f"<tr><td>{part}</td>{''.join(f'<td>{_cell(one, part)}</td>' for one in study.found)}</tr>"
        for part in study.best.top(top)
    )
    return f"<table><tr><th>part</th>{head}</tr>{rows}</table>"


def _columns(parts: Sequence[Part]) -> list[str]:
    """Of a heat map: heads, then what a layer has besides."""
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
    """Values and what is said of each; the constants after the last layer have a row of their own."""
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
    """A map of parts × positions for every method that was asked by position."""
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
    """What is left of the score when the first k heads are ablated together."""
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
    """How the projection on v builds up from layer to layer."""
    from plotly.graph_objects import Figure, Scatter

    figure = Figure()
    for side, values in study.accumulated.items():
        figure.add_trace(Scatter(x=list(range(len(values))), y=values.tolist(), mode="lines+markers", name=side))
    figure.update_layout(
        title="Mean projection on v at the last token", xaxis_title="residual point", yaxis_title="vᵀ r"
    )
    return figure
