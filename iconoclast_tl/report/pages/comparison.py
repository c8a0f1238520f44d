"""The page of a comparison of runs."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from iconoclast_tl.report.pages.frame import figure_page
from iconoclast_tl.report.tables.comparison import (
    COLUMNS,
    arm_rows,
    captions,
    effect_text,
    heading,
    interval_text,
    verdicts,
)
from iconoclast_tl.run_comparison.compare import Comparison

RUN_COLUMNS = ("arm", "run", "seed", "model", "behaviour, base → edited", "Δ", "p", "d", "spill, base → edited", "KL")


def comparison_page(found: Comparison) -> str:
    """The contents of comparison.html; everything it needs is in it."""
    figures = [_rates(found, "behaviour", "Behaviour rate, target prompts")]
    figures += [_rates(found, "spill", "Spill rate, neutral prompts"), _divergences(found), _differences(found)]
    tables = f"{_html_table(COLUMNS, arm_rows(found))}<h2>Runs</h2>{_html_table(RUN_COLUMNS, _run_rows(found))}"
    lines = [*verdicts(found), *captions(found)]
    return figure_page(heading(found), lines, figures, f"{tables}<h2>Pairs</h2>{_pairs(found)}")


def _run_rows(found: Comparison) -> list[list[str]]:
    rows = []
    for arm in found.arms:
        for run in arm.runs:
            one = found.summaries[run.path]
            behaviour, spill, kl = one.behaviour, one.spill, one.kl
            change = behaviour.difference
            rows.append(
                [
                    arm.name,
                    run.path,
                    str(run.seed),
                    run.model,
                    f"{behaviour.base:.1%} → {behaviour.edited:.1%}",
                    interval_text(change.value, change.low, change.high, "{:+.1%}"),
                    f"{behaviour.test.p:.2g}",
                    effect_text(behaviour.d),
                    f"{spill.base:.1%} → {spill.edited:.1%}",
                    interval_text(kl.value, kl.low, kl.high, "{:.4f}"),
                ]
            )
    return rows


def _html_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _pairs(found: Comparison) -> str:
    rows = []
    for one in found.contrasts:
        for pair, behaviour, spill, kl in zip(
            one.pairs, one.behaviour.pairs, one.spill.pairs, one.kl.pairs, strict=True
        ):
            sides = (pair.reference.path, pair.candidate.path)
            changes = [
                f"{interval_text(each.difference.value, each.difference.low, each.difference.high, '{:+.1%}')}, "
                f"p {each.test.p:.2g}, −{each.test.lost} +{each.test.gained} of {each.n}"
                for each in (behaviour, spill)
            ]
            rows.append(
                [*sides, *changes, effect_text(behaviour.d), interval_text(kl.value, kl.low, kl.high, "{:+.4f}")]
            )
    return _html_table(("reference", "candidate", "Δ behaviour", "Δ spill", "d", "Δ KL"), rows)


def _rates(found: Comparison, name: str, title: str) -> Any:
    """Every run's rate with its Wilson interval, base beside edited."""
    from plotly.graph_objects import Figure, Scatter

    figure, names = Figure(), _run_names(found)
    for side, symbol in (("base", "circle-open"), ("edited", "circle")):
        rates = [one.rates[name][side] for one in found.summaries.values()]
        ends = [(one.value, one.low, one.high) for one in rates]
        figure.add_trace(Scatter(**_points(names, ends), name=side, marker={"symbol": symbol, "size": 9}))
    figure.update_layout(title=f"{title}, 95% Wilson intervals", yaxis_tickformat=".0%", yaxis_range=[-0.03, 1.03])
    return figure


def _divergences(found: Comparison) -> Any:
    from plotly.graph_objects import Figure, Scatter

    ends = [_ends(one.kl.value, one.kl.low, one.kl.high) for one in found.summaries.values()]
    figure = Figure(Scatter(**_points(_run_names(found), ends), marker={"size": 9}))
    figure.update_layout(title="KL of the edited model, neutral prompts, 95% bootstrap intervals", yaxis_title="nats")
    return figure


def _differences(found: Comparison) -> Any:
    """Of every arm to the reference."""
    from plotly.graph_objects import Figure, Scatter

    names, figure = [one.candidate for one in found.contrasts], Figure()
    behaviour, spill = [one.behaviour for one in found.contrasts], [one.spill for one in found.contrasts]
    for name, changes in (("behaviour", behaviour), ("spill", spill)):
        ends = [_ends(one.value, one.low, one.high) for one in changes]
        figure.add_trace(Scatter(**_points(names, ends), name=name, marker={"size": 9}))
    figure.add_hline(y=0, line_dash="dot")
    title = "Edited less base" if found.against_base else f"Rates less those of {found.arms[0].name}"
    figure.update_layout(title=f"{title}, 95% intervals", yaxis_tickformat="+.0%")
    return figure


def _run_names(found: Comparison) -> list[str]:
    return [f"{arm.name}: {run.path}" for arm in found.arms for run in arm.runs]


def _ends(value: float, low: float | None, high: float | None) -> tuple[float, float, float]:
    return value, value if low is None else low, value if high is None else high


def _points(names: Sequence[str], ends: Sequence[tuple[float, float, float]]) -> dict[str, Any]:
    above, below = [high - value for value, _, high in ends], [value - low for value, low, _ in ends]
    errors = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
    return {"x": list(names), "y": [value for value, _, _ in ends], "mode": "markers", "error_y": errors}
