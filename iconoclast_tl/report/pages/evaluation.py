"""The page of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from iconoclast_tl.report.pages.frame import figure_page
from iconoclast_tl.report.tables.evaluation import SETS, models_of, rate_text

COLOURS = {"base": "#888888", "edited": "#1f6fb4"}
RATE_OF_SET = {"target": "behaviour_rate", "neutral": "spill_rate", "borderline": "spill_rate_borderline"}


def evaluation_page(results: Mapping[str, Any]) -> str:
    """The contents of evaluation.html: rates by set, detector, token budget and category, with their intervals."""
    figures = [_by_detector(results)]
    if results["base"].get("by_budget"):
        figures.append(_by_budget(results))
    figures += [figure for name in SETS if (figure := _by_category(results, name)) is not None]
    return figure_page(f"{results['behaviour']} of {results['model']}, test split", summary(results), figures)


def summary(results: Mapping[str, Any]) -> list[str]:
    """What was measured, and how."""
    models = models_of(results)
    lines = [
        f"Greedy responses of at most {results['budget']} tokens; behaviour labelled by {results['detector']}. "
        "Intervals are Wilson's, 95%. Responses that a detector could not label, or was not sure of, are in no rate.",
        *(
            f"{model}: behaviour rate on target prompts {rate_text(results[model]['behaviour_rate'])}"
            for model in models
        ),
    ]
    told = [f"{one['detectors'][0]} and {one['detectors'][1]} κ {one['kappa']:.2f}" for one in _with_kappa(results)]
    return [*lines, f"Agreement: {'; '.join(told)}."] if told else lines


def _with_kappa(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [one for one in results["agreement"] if one["kappa"] is not None]


def _by_detector(results: Mapping[str, Any]) -> Any:
    import plotly.graph_objects as go

    bars = []
    for model in models_of(results):
        cells = [
            (f"{name}<br>{detector}", found[model][name]["behaviour_rate"])
            for name in SETS
            for detector, found in results["detectors"].items()
            if name in found[model]
        ]
        known = [(label, rate) for label, rate in cells if rate is not None]
        bars.append(_bars(go, model, [label for label, _ in known], [rate for _, rate in known]))
    return _figure(go, bars, "share of responses that show the behaviour, by detector", "")


def _by_category(results: Mapping[str, Any], name: str) -> Any | None:
    import plotly.graph_objects as go

    found = {model: results[model]["by_category"].get(name) or {} for model in models_of(results)}
    if not any(found.values()):
        return None
    bars = [_bars(go, model, list(rates), list(rates.values())) for model, rates in found.items()]
    return _figure(go, bars, f"by category, {name} prompts", "")


def _by_budget(results: Mapping[str, Any]) -> Any:
    import plotly.graph_objects as go

    lines = []
    for model in models_of(results):
        for name in SETS:
            rates = {int(budget): found.get(name) for budget, found in results[model]["by_budget"].items()}
            rates[results["budget"]] = results[model][RATE_OF_SET[name]]
            known = {budget: rate for budget, rate in sorted(rates.items()) if rate is not None}
            if known:
                lines.append(
                    go.Scatter(
                        x=list(known),
                        y=[rate["value"] for rate in known.values()],
                        error_y=_errors(list(known.values())),
                        name=f"{model}, {name}",
                        line={"color": COLOURS[model], "dash": {"target": "solid"}.get(name, "dot")},
                    )
                )
    return _figure(go, lines, f"rates at smaller token budgets, {results['detector']}", "tokens")


def _bars(go: Any, model: str, labels: Sequence[str], rates: Sequence[Mapping[str, Any]]) -> Any:
    return go.Bar(
        x=list(labels),
        y=[rate["value"] for rate in rates],
        error_y=_errors(rates),
        name=model,
        marker_color=COLOURS[model],
        hovertext=[f"{rate_text(rate)}, n = {rate['n']}" for rate in rates],
    )


def _errors(rates: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "type": "data",
        "array": [rate["high"] - rate["value"] for rate in rates],
        "arrayminus": [rate["value"] - rate["low"] for rate in rates],
    }


def _figure(go: Any, traces: Sequence[Any], title: str, x: str) -> Any:
    figure = go.Figure(list(traces))
    figure.update_layout(title=title, template="plotly_white", height=420, barmode="group")
    figure.update_yaxes(title="share", range=[0, 1.02])
    figure.update_xaxes(title=x)
    return figure
