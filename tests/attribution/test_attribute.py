"""`attribute` on plain objects: what it gives a notebook, and what it refuses in one line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from iconoclast_tl.activations.collect import collect
from iconoclast_tl.attribution.attribute import attribute
from iconoclast_tl.attribution.config import AttributionConfig
from iconoclast_tl.attribution.parts import Part
from iconoclast_tl.attribution.study import Study
from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.edits.ablation import ablate, add
from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.evaluation.suite import EvaluationConfig
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.contrast import ContrastSet, Split

SHORT = EvaluationConfig(max_new_tokens=4, kl_tokens=2, batch_size=16)
CHEAP: dict[str, Any] = {"score": "projection", "prompts": 6, "evaluation": SHORT, "cumulative": False}


@pytest.fixture
def data() -> ContrastSet:
    """Target prompts begin with w10, neutral ones with w20."""
    target, neutral = ([f"{first} w{30 + row}" for row in range(12)] for first in ("w10", "w20"))
    return ContrastSet.split(target, neutral)


@pytest.fixture
def v(llama: Model, data: ContrastSet) -> torch.Tensor:
    """The difference of means at the last point, so that the projection tells the sides apart."""
    acts = collect(llama, data, batch_size=16)
    return torch.nn.functional.normalize((acts.target_train.mean(0) - acts.neutral_train.mean(0))[-1], dim=0)


@pytest.fixture
def study(llama: Model, data: ContrastSet, v: torch.Tensor) -> Study:
    return attribute(llama, data, v, method=("direct", "gradient", "integrated"), **CHEAP)


def layered(v: torch.Tensor) -> Directions:
    """Another direction at every point; v at the last."""
    vectors = torch.stack([v.roll(3 - point) for point in range(4)])
    return Directions.single(vectors, torch.arange(4.0))


def test_the_first_parts_are_those_of_the_ranking_method(study: Study) -> None:
    first = study.top(3)
    integrated = study.by("integrated")
    values = {part: float(mean) for part, mean in zip(integrated.parts, integrated.means, strict=True)}
    best = sorted((part for part in values if part.component != "embed"), key=lambda part: -values[part])[:3]
    assert [one.part for one in first] == best
    assert [one.value for one in first] == [values[part] for part in best]
    assert all(one.low <= one.value <= one.high for one in first)
    assert {one.part.component for one in study.top(99)} == {"head", "mlp"}
    assert study.top(1, "embed")[0].part == Part(0, "embed")
    by_gradient, of_gradient = study.top(4, "head", method="gradient"), study.by("gradient")
    assert [one.part for one in by_gradient] == of_gradient.top(4, "head")
    assert [one.part for one in study.top(12, "head")] != [one.part for one in study.top(12, "head", method="gradient")]
    with pytest.raises(UserError, match="this study has no method ablate: want direct, direct-contrast, gradient"):
        study.top(3, method="ablate")


def test_a_study_says_what_it_is(study: Study) -> None:
    first = study.top(3)
    line = repr(study)
    assert line.startswith("Study(projection by direct, direct-contrast, gradient, integrated, 6 prompts: ")
    assert f"{first[0].part} {first[0].value:+.2f}" in line
    assert "\n" not in line
    assert repr(first[0]) == f"{first[0].part} {first[0].value:.2f} [{first[0].low:.2f}, {first[0].high:.2f}]"
    page = study._repr_html_()
    assert page.count("<tr>") == 1 + len(study.top(20))
    assert f"<td>{first[0].part}</td>" in page


def test_a_direction_means_its_ablation_everywhere(
    llama: Model, data: ContrastSet, v: torch.Tensor, study: Study
) -> None:
    same = attribute(llama, data, ablate(llama, 3 * v), method="integrated", **CHEAP)
    assert torch.allclose(same.by("integrated").values, study.by("integrated").values, atol=1e-5)
    half = attribute(llama, data, ablate(llama, v, strength=0.5), method="integrated", **CHEAP)
    assert not torch.allclose(half.by("integrated").values, study.by("integrated").values, atol=1e-3)
    made = study.edit_of_heads(2, "gradient")
    heads = {(part.layer, part.head) for part in study.by("gradient").top(2, "head")}
    assert {tuple(place) for place in made.parts["attn_out"].nonzero().tolist()} == heads


def test_only_some_parts_and_the_methods_of_the_settings(llama: Model, data: ContrastSet, v: torch.Tensor) -> None:
    config = AttributionConfig(methods=("ablate",), score="projection", prompts=6, cumulative=False)
    some = attribute(llama, data, v, config=config, evaluation=SHORT, only=["L1H2", Part(2, "mlp")])
    assert [one.method for one in some.found] == ["ablate"]
    assert set(some.by("ablate").parts) == {Part(1, "head", 2), Part(2, "mlp")}
    assert [one.method for one in attribute(llama, data, v, **CHEAP).found] == ["integrated"]
    assert len(attribute(llama, data, v, split="val", **CHEAP).target_scores) == 3  # val has no more
    acts = collect(llama, data, batch_size=16)
    accumulated = attribute(llama, data, v, acts=acts, **CHEAP).accumulated
    assert torch.allclose(accumulated["target"], (acts.target_train.double() @ v.double()).mean(0))
    assert attribute(llama, data, v, **CHEAP).accumulated == {}


def test_an_affine_edit_needs_the_activations_and_gives_other_values(
    llama: Model, data: ContrastSet, v: torch.Tensor, study: Study
) -> None:
    acts = collect(llama, data, batch_size=16)
    edit = ablate(llama, v, acts=acts, affine=True)
    with pytest.raises(UserError, match="an affine edit is taken apart with the neutral means"):
        attribute(llama, data, edit, **CHEAP)
    found = attribute(llama, data, edit, acts=acts, **CHEAP).by("integrated")
    assert not torch.allclose(found.values, study.by("integrated").values, atol=1e-3)


def test_edits_with_a_direction_a_layer_need_one_to_project_on(
    llama: Model, data: ContrastSet, v: torch.Tensor
) -> None:
    edit = ablate(llama, layered(v))
    with pytest.raises(UserError, match="the projection is on one direction"):
        attribute(llama, data, edit, **CHEAP)
    with pytest.raises(UserError, match="direct attribution is along one direction"):
        attribute(llama, data, edit, method="direct", **CHEAP)
    given = attribute(llama, data, edit, method="gradient", direction=layered(v), **CHEAP)
    assert given.direction.startswith("the direction of point 3")
    tensor = attribute(llama, data, edit, method="gradient", direction=2 * v, **CHEAP)
    assert torch.allclose(given.target_scores, tensor.target_scores, atol=1e-5)


def other_edit(kind: str, model: Model, v: torch.Tensor) -> Edit | torch.Tensor:
    edit = ablate(model, v)
    if kind == "wider":
        return Edit(directions=torch.zeros(1, 3, 32), strengths={})
    if kind == "deeper":
        return Edit(directions=torch.zeros(1, 5, 24), strengths={})
    if kind == "rows":
        return ablate(model, v, row_normalization="pre")
    if kind == "stream":
        return ablate(model, v, scope="stream")
    if kind == "addition":
        return add(model, v, point=1, coefficient=1.0, to=edit)
    return torch.zeros(32)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("wider", "the edit is of another model: got 3 layers, d_model 32; want 3 layers, d_model 24"),
        ("deeper", "the edit is of another model: got 5 layers, d_model 24"),
        ("vector", "the direction is of another model"),
        ("rows", "an edit with row normalisation does not fall into heads"),
        ("stream", "an edit of the whole stream does not fall into parts"),
        ("addition", "an edit that adds a constant or keeps norms does not fall into parts"),
    ],
)
def test_edits_that_do_not_fit_or_fall_into_parts_are_refused(
    llama: Model, data: ContrastSet, v: torch.Tensor, kind: str, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        attribute(llama, data, other_edit(kind, llama, v), **CHEAP)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "guess"}, "there is no method 'guess': want one of direct, gradient, integrated"),
        ({"method": ()}, "the setting methods does not fit"),
        ({"split": "dev"}, "there is no split dev"),
        ({"promts": 8}, "unknown setting promts"),
        ({"only": ["L7H0"]}, "there is no part L7H0"),
        ({"only": []}, "no part is named"),
        ({"config": AttributionConfig(), "prompts": 4}, "settings are passed twice: got config and "),
    ],
)
def test_mistakes_are_told_in_a_line(
    llama: Model, data: ContrastSet, v: torch.Tensor, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        attribute(llama, data, v, **{**CHEAP, **changes})


def test_empty_splits_and_activations_of_another_model_are_refused(
    llama: Model, biased: Model, data: ContrastSet, v: torch.Tensor
) -> None:
    empty = replace(data, train=Split((), data.train.neutral))
    with pytest.raises(UserError, match="there are no target prompts in this split"):
        attribute(llama, empty, v, **CHEAP)
    with pytest.raises(UserError, match="the activations were collected from other weights"):
        attribute(llama, data, v, acts=collect(biased, data, batch_size=16), **CHEAP)
