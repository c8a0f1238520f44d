"""Pictures of objects in a notebook: one function a type, small figures as SVG.

`svg(thing)` chooses by type; `figure(thing)` gives the matplotlib figure, to change or to save in another format.
"""

from __future__ import annotations

from functools import singledispatch
from io import StringIO
from typing import Any, Final

import torch
from torch import Tensor

from iconoclast_tl.architecture.sites import Component
from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.evaluation.evaluate import Evaluation
from iconoclast_tl.search.job import Found
from iconoclast_tl.search.pareto import Candidate
from iconoclast_tl.statistics.rates import Rate

BLUE, ORANGE, GREY = "#3266a8", "#d9822b", "#8a8a8a"
COLOURS: Final[dict[Component, str]] = {"attn_out": BLUE, "mlp_out": ORANGE, "resid_pre": GREY}
SIZE: Final = (6.4, 2.8)
"""Inches."""


@singledispatch
def figure(thing: object) -> Any:
    """The matplotlib figure of an object; `TypeError` for one that has no picture."""
    raise TypeError(f"{type(thing).__name__} has no picture")


def svg(thing: object) -> str:
    """The picture of an object as SVG, the same bytes every time."""
    import matplotlib as mpl

    out = StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "iconoclast_tl"}):
        figure(thing).savefig(out, format="svg", metadata={"Date": None}, facecolor="white")
    return out.getvalue()


def new_axes(title: str, size: tuple[float, float] = SIZE) -> tuple[Any, Any]:
    """An empty figure with one pair of axes, without pyplot's global state."""
    from matplotlib.figure import Figure

    made = Figure(figsize=size, layout="constrained")
    axes = made.subplots()
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return made, axes


@figure.register
def _(directions: Directions) -> Any:
    """Separation of the val prompts along the direction of every residual point."""
    made, axes = new_axes(f"Separation of val prompts along the direction ({_name(directions)})")
    points = range(directions.n_layers + 1)
    axes.plot(points, directions.separation.tolist(), marker="o", color=BLUE)
    best = directions.best
    axes.plot([best], [float(directions.separation[best])], marker="o", markersize=10, color=ORANGE, linestyle="none")
    axes.annotate(
        f"point {best}", (best, float(directions.separation[best])), xytext=(6, 6), textcoords="offset points"
    )
    axes.set_xlabel("residual point (p: what enters layer p)")
    axes.set_ylabel("d′")
    axes.set_ylim(bottom=min(0.0, float(directions.separation.min())))
    return made


def _name(directions: Directions) -> str:
    """By what they were estimated, where that is known."""
    return str((directions.provenance.get("directions") or {}).get("estimator", "of unknown origin"))


@figure.register
def _(edit: Edit) -> Any:
    """Strengths by layer and component; of heads, where they have strengths of their own, a heat map."""
    if "attn_out" in edit.parts:
        return _heads(edit)
    made, axes = new_axes(f"Strengths λ of {edit}")
    shown = {name: _largest(values) for name, values in edit.strengths.items() if bool(values.any())}
    width = 0.8 / max(len(shown), 1)
    for number, (name, values) in enumerate(sorted(shown.items())):
        places = torch.arange(edit.n_layers) + (number - (len(shown) - 1) / 2) * width
        axes.bar(places.tolist(), values.tolist(), width, label=name, color=COLOURS[name])
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_xlabel("layer")
    axes.set_ylabel("λ")
    axes.set_xlim(-0.6, edit.n_layers - 0.4)
    if shown:
        axes.legend(frameon=False)
    return made


def _largest(strengths: Tensor) -> Tensor:
    """Of several directions of a layer the strength that is largest in magnitude."""
    return strengths.gather(0, strengths.abs().argmax(0, keepdim=True))[0]


def _heads(edit: Edit) -> Any:
    values = edit.parts["attn_out"] * _largest(edit.strengths["attn_out"])[:, None]
    made, axes = new_axes(f"Strengths λ of heads, {edit}")
    heat_map(made, axes, values, "head", "λ")
    return made


def heat_map(made: Any, axes: Any, values: Tensor, columns: str, unit: str) -> None:
    """Values by layer (rows) and part (columns), blue below zero and red above."""
    limit = max(float(values.abs().max()), 1e-12)
    image = axes.imshow(values.tolist(), cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", origin="lower")
    axes.set_xlabel(columns)
    axes.set_ylabel("layer")
    made.colorbar(image, ax=axes, label=unit)


@figure.register
def _(found: Found) -> Any:
    """The Pareto front: behaviour rate on val against KL, with what else was confirmed and what was chosen."""
    config = found.config
    made, axes = new_axes(f"Behaviour against KL on val, {len(found.candidates)} candidates by {config.method}")

    def place(candidate: Candidate) -> tuple[float, float]:
        return candidate.scores.kl(config.kl), 100 * candidate.scores.behaviour_rate

    front = sorted(place(candidate) for candidate in found.front())
    axes.plot(*zip(*map(place, found.candidates), strict=True), "o", color=GREY, markersize=4, label="confirmed")
    axes.plot(*zip(*front, strict=True), "o-", color=BLUE, label="front")
    axes.plot(*place(found.chosen), "o", color=ORANGE, markersize=9, label="chosen")
    positive = all(place(candidate)[0] > 0 for candidate in found.candidates)  # an edit may cost nothing at all
    axes.set_xscale("log") if positive else axes.set_xscale("symlog", linthresh=1e-6)
    axes.set_xlabel(f"KL(base ‖ edited), nats, {config.kl.replace('_', ' ')}")
    axes.set_ylabel("behaviour rate, %")
    axes.set_ylim(-4, 104)
    axes.legend(frameon=False)
    return made


@figure.register
def _(evaluation: Evaluation) -> Any:
    """Rates with their 95% intervals, base above edited."""
    made, axes = new_axes(f"{evaluation.detector}, greedy responses of at most {evaluation.budget} tokens")
    shown = [("behaviour, target", "behaviour_rate"), ("spill, neutral", "spill_rate")]
    shown += [("spill, borderline", "spill_rate_borderline"), ("compliance, target", "compliance_rate")]
    rows = [(name, key) for name, key in shown if getattr(evaluation.base, key) is not None]
    for number, (model, colour) in enumerate(zip(evaluation.measured, (GREY, BLUE), strict=False)):
        rates: list[Rate] = [getattr(evaluation.measured[model], key) for _, key in rows]
        values = [100 * rate.value for rate in rates]
        below = [100 * max(rate.value - rate.low, 0) for rate in rates]
        above = [100 * max(rate.high - rate.value, 0) for rate in rates]
        places = [row + 0.2 * (2 * number - 1) for row in range(len(rows))]
        axes.errorbar(values, places, xerr=[below, above], fmt="o", color=colour, capsize=3, label=model)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set_xlim(-4, 104)
    axes.set_xlabel("% of prompts")
    axes.invert_yaxis()
    axes.legend(frameon=False)
    return made
