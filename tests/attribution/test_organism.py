"""On the shipped organism it is known where the gate can be: the first three layers were never taught it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from iconoclast_tl.attribution.attribute import attribute
from iconoclast_tl.attribution.config import AttributionConfig
from iconoclast_tl.attribution.ranking import top_neurons
from iconoclast_tl.attribution.study import Study
from iconoclast_tl.edits.ablation import ablate
from iconoclast_tl.report.pages.attribution import AttributionReport
from iconoclast_tl.search.assemble import Inputs, ranked_parts
from iconoclast_tl.stages.attribution import attributed
from iconoclast_tl.stages.collection import collected
from iconoclast_tl.stages.directions import estimated
from iconoclast_tl.stages.opening import open_workspace
from iconoclast_tl.stages.workspace import Workspace

SETTINGS = {
    "model": {"dtype": "float32"},
    "edit": {"affine": True},
    "evaluation": {"max_new_tokens": 24, "kl_tokens": 8, "batch_size": 64},
}
FIRST_LAYER = 3
"""The first that phase 2 of its training changed (`organism.json`)."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder: activations are collected once."""
    return tmp_path_factory.mktemp("run") / "run"


@pytest.fixture(scope="module")
def report(folder: Path) -> AttributionReport:
    """Along the direction of point 5, affine, λ = 1 everywhere."""
    with open_workspace(SETTINGS, None, folder) as workspace:
        return attributed(asking(workspace, prompts=8), point=5.0)


def asking(workspace: Workspace, **changes: object) -> Workspace:
    config = AttributionConfig(**changes)  # type: ignore[arg-type]
    return replace(workspace, settings=workspace.settings.model_copy(update={"attribution": config}))


def share_below(study: Study, method: str) -> float:
    """Of the magnitudes of heads and MLPs, how much lies below the first layer that was taught the gate."""
    found = study.by(method)
    sizes = {part: abs(float(value)) for part, value in zip(found.parts, found.means, strict=True)}
    kept = {part: size for part, size in sizes.items() if part.component in ("head", "mlp")}
    return sum(size for part, size in kept.items() if part.layer < FIRST_LAYER) / sum(kept.values())


def test_what_carries_the_gate_is_where_it_was_taught(report: AttributionReport) -> None:
    study = report.study
    for method in ("integrated", "restore", "direct-contrast"):
        assert share_below(study, method) < 0.1, method
    # What the earlier layers say of the topic is needed all the same: exchanging it changes everything.
    assert share_below(study, "interchange") > 0.2


def test_heads_that_rank_high_take_the_behaviour_with_them(report: AttributionReport) -> None:
    """The first four of 24, ablated together, against all heads; the last four of the same ranking do nothing."""
    (curve,) = [curve for curve in report.study.curves if curve.method == "integrated"]
    scores = dict(zip(curve.ks, curve.scores.mean(1).tolist(), strict=True))
    assert scores[0] - scores[4] > 0.4 * (scores[0] - scores[24])
    assert scores[0] > report.study.neutral_scores.mean() + 10


def test_the_integral_adds_up_and_the_gradient_at_0_does_not(report: AttributionReport) -> None:
    """The base is so sure of refusing that its log-odds hardly move at first."""
    study, integrated = report.study, report.study.by("integrated")
    assert not study.warnings
    total = integrated.checks["total"]
    assert float(integrated.means.sum()) == pytest.approx(total, rel=0.01)
    assert float(study.by("gradient").means.sum()) < 0.5 * total


def test_a_notebook_shows_heat_maps(report: AttributionReport) -> None:
    shown = report._repr_html_()
    assert shown.count('"type":"heatmap"') >= len(report.study.found)
    assert "plotly.js" in shown


def test_without_a_run_folder_the_values_are_the_same(folder: Path, report: AttributionReport) -> None:
    """From a model, prompts and an edit; a plain edit in the place of the affine one gives others."""
    with open_workspace(SETTINGS, None, folder) as workspace:
        activations = collected(workspace)
        vector = estimated(workspace, activations).at(5.0)
        evaluation = workspace.settings.evaluation
        model, data = workspace.model, workspace.contrast
    edit = ablate(model, vector, acts=activations, affine=True)
    methods = ("direct", "gradient", "integrated")
    same = {"acts": activations, "prompts": 8, "evaluation": evaluation, "cumulative": False}
    found = attribute(model, data, edit, method=methods, **same)
    for method in ("direct", "direct-contrast", "gradient", "integrated"):
        mine, its = found.by(method), report.study.by(method)
        assert mine.parts == its.parts
        assert torch.allclose(mine.values, its.values, rtol=1e-5, atol=1e-5), method
    assert torch.equal(found.accumulated["target"], report.study.accumulated["target"])
    assert [one.part for one in found.top(10)] == report.study.by("integrated").top(10, "head", "mlp")
    plain = attribute(model, data, vector, method="gradient", prompts=8, evaluation=evaluation, cumulative=False)
    assert not torch.allclose(plain.by("gradient").values, report.study.by("gradient").values, atol=1e-2)


def test_what_is_chosen_for_a_search_is_ranked_before_it(folder: Path) -> None:
    with open_workspace(SETTINGS, None, folder) as workspace:
        workspace = asking(workspace, prompts=4)
        activations = collected(workspace)
        directions = estimated(workspace, activations)
        settings = workspace.settings
        inputs = Inputs(
            model=workspace.model,
            directions=directions,
            acts=activations,
            search=settings.search.model_copy(update={"top_k": 3, "by": "integrated"}),
            edit=settings.edit,
            scores=settings.scores,
            estimated=settings.directions,
        )
        assert inputs.affine == (True,)  # as is set here
        ranked = ranked_parts(inputs, lambda: workspace.asked("train", 4), settings.attribution)
        assert (ranked.kind, len(ranked.names)) == ("head", 3)
        assert all(int(name.split(".")[0]) >= FIRST_LAYER for name in ranked.names)
        neurons = top_neurons(workspace.model, activations, directions.at(5.0), 8)
        # By hand: what each neuron writes along v, on target less on neutral prompts.
        layer, neuron = map(int, neurons[0].split("."))
        column = workspace.model.hf.model.layers[layer].mlp.down_proj.weight[:, neuron].double()
        reads = [side["mlp_out"][layer, neuron] for side in (activations.target_reads, activations.neutral_reads)]
        largest = float(directions.at(5.0).double() @ column * (reads[0] - reads[1]))
        every = [
            (directions.at(5.0).double() @ one.mlp.down_proj.weight.double())
            * (activations.target_reads["mlp_out"][i] - activations.neutral_reads["mlp_out"][i])
            for i, one in enumerate(workspace.model.hf.model.layers)
        ]
        assert largest == pytest.approx(float(torch.stack(every).max()), rel=1e-5)
