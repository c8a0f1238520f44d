"""Parts that are taken away, put back or exchanged in one batch are what a loop over them says, one pass each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from iconoclast_tl.attribution.causal import causal
from iconoclast_tl.attribution.direct import INCOMPLETE_QUANTISED, direct
from iconoclast_tl.attribution.gradient import gradient
from iconoclast_tl.attribution.parts import Part
from iconoclast_tl.attribution.query import Query
from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.edits.hooks import preview
from iconoclast_tl.models.config import ModelConfig
from iconoclast_tl.models.load import load_model
from iconoclast_tl.models.model import Model
from iconoclast_tl.scores.score import Score
from tests.attribution.subjects import FEW, Case, case_of, make_case, scores


@pytest.fixture
def rows(rows: list[list[int]]) -> list[list[int]]:
    """Four of them, of different lengths."""
    return rows[:4]


@pytest.fixture(params=FEW)
def case(request: pytest.FixtureRequest, tmp_path: Path, load: Callable[..., Model], rows: list[list[int]]) -> Case:
    return make_case(request.param, tmp_path, load, rows, affine=True)


@torch.no_grad()
def plain_scores(case: Case, score: Score, edit: Edit | None, n: int) -> torch.Tensor:
    """Prompt by prompt, under an edit's preview."""

    def read() -> torch.Tensor:
        return torch.stack([score.read(score.ask(torch.tensor([prompt])))[0, 0] for prompt in range(n)])

    if edit is None or not edit.sites:
        return read()
    with preview(edit, case.sites):
        return read()


def whole_edit(case: Case, without: Part | None = None) -> Edit:
    """The edit that the subject was made of, head by head, with one part left out."""
    unit = case.subject.edit
    strengths = {name: torch.zeros_like(values) for name, values in unit.strengths.items()}
    factors = {name: torch.zeros_like(values) for name, values in unit.parts.items()}
    for part in case.subject.parts:
        site, head = case.subject.where(part)
        value = 0.0 if part == without else case.subject.strength(part)
        if head is None:
            strengths[site.component][:, site.layer] = value
        else:
            strengths[site.component][:, site.layer] = 1.0
            factors[site.component][site.layer, head] = value
    return replace(unit, strengths=strengths, parts=factors)


def test_ablate_is_a_loop_over_parts(case: Case, rows: list[list[int]]) -> None:
    score, n = scores(case.model, rows, case.direction)["log-odds"], len(rows)
    found = causal("ablate", Query(score, case.subject, torch.arange(n), batch_size=7))
    base = plain_scores(case, score, None, n)
    for place, part in enumerate(case.subject.parts):
        expected = base - plain_scores(case, score, case.subject.only([part]), n)
        assert torch.allclose(found.values[:, place], expected, atol=2e-4), part
    assert float(found.values.abs().max()) > 1e-2


def test_restore_is_a_loop_over_parts(case: Case, rows: list[list[int]]) -> None:
    score, n = scores(case.model, rows, case.direction)["logit"], len(rows)
    found = causal("restore", Query(score, case.subject, torch.arange(n), batch_size=7))
    edited = plain_scores(case, score, whole_edit(case), n)
    for place, part in enumerate(case.subject.parts):
        expected = plain_scores(case, score, whole_edit(case, without=part), n) - edited
        assert torch.allclose(found.values[:, place], expected, atol=2e-4), part
    ablated = causal("ablate", Query(score, case.subject, torch.arange(n), batch_size=7))
    assert not torch.allclose(found.values, ablated.values, atol=1e-2)


def writes(case: Case, tokens: list[int], part: Part) -> torch.Tensor:
    """What a part alone writes at every position of some tokens; of the whole site's module where it has no heads."""
    site, head = case.subject.where(part)
    where, kept = case.sites[site], list[Any]()

    def keep(y: torch.Tensor, x: torch.Tensor | None) -> torch.Tensor:
        kept.append((y.clone(), None if x is None else x.clone()))
        return y

    handle = where.attach(keep)
    case.model.hf(torch.tensor([tokens]))
    handle.remove()
    y, x = kept[0]
    if head is None:
        return y.reshape(len(tokens), -1)
    x = x.reshape(len(tokens), -1)
    width = x.shape[-1] // case.subject.edit.parts["attn_out"].shape[1]
    alone = torch.zeros_like(x)
    alone[:, head * width : (head + 1) * width] = x[:, head * width : (head + 1) * width]
    return where.module.forward(alone) - where.module.forward(torch.zeros_like(x))


@torch.no_grad()
def exchanged(case: Case, score: Score, prompt: int, mine: list[int], other: list[int], part: Part) -> float:
    """The score of a prompt with what a part wrote on another one, aligned at the end."""
    both = min(len(mine), len(other))
    own, given = writes(case, mine, part)[-both:], writes(case, other, part)[-both:]
    if part.head is None:
        assert own.shape == given.shape

    def change(y: torch.Tensor, x: torch.Tensor | None) -> torch.Tensor:
        changed = y.reshape(len(mine), -1).clone()
        changed[-both:] += given - own
        return changed.reshape(y.shape)

    handle = case.sites[part.site].attach(change)
    try:
        return float(score.read(score.ask(torch.tensor([prompt])))[0, 0])
    finally:
        handle.remove()


def test_interchange_is_a_loop_over_parts(case: Case, rows: list[list[int]]) -> None:
    """A score with one row a prompt, so that the loop need not know of responses."""
    others = [[*row[::-1], 9] for row in rows[1:] + rows[:1]]
    here, there = (scores(case.model, some, case.direction)["logit"] for some in (rows, others))
    prompts = torch.arange(len(rows))
    found = causal("interchange", Query(here, case.subject, prompts, batch_size=7), there)
    back = causal("interchange-back", Query(there, case.subject, prompts, batch_size=7), here)
    base = {name: plain_scores(case, score, None, len(rows)) for name, score in (("here", here), ("there", there))}
    for place, part in list(enumerate(case.subject.parts))[::3]:
        for prompt in (0, 2):
            mine, other = rows[prompt], others[prompt]
            expected = float(base["here"][prompt]) - exchanged(case, here, prompt, mine, other, part)
            assert float(found.values[prompt, place]) == pytest.approx(expected, abs=2e-4), part
            expected = exchanged(case, there, prompt, other, mine, part) - float(base["there"][prompt])
            assert float(back.values[prompt, place]) == pytest.approx(expected, abs=2e-4), part
    itself = causal("interchange", Query(here, case.subject, prompts, batch_size=7), here)
    assert float(itself.values.abs().max()) < 1e-4  # a prompt's own outputs change nothing
    assert float(found.values.abs().max()) > 1e-2


@pytest.mark.parametrize("method", ["restore", "interchange"])
def test_one_position_at_a_time(tmp_path: Path, load: Callable[..., Model], rows: list[list[int]], method: Any) -> None:
    """Positions of one-layer changes that do not meet: the last layer's MLP writes at each by itself."""
    case = make_case("Llama", tmp_path, load, rows)
    score = scores(case.model, rows, case.direction)["projection"]
    other = scores(case.model, [row[::-1] for row in rows], case.direction)["projection"]
    found = causal(method, Query(score, case.subject, torch.arange(len(rows)), batch_size=9, positions=True), other)
    assert found.by_position is not None
    last = found.parts.index(Part(2, "mlp"))
    values = found.by_position.values
    assert found.by_position.positions[-1] == 0
    assert float(values[-1, last]) == pytest.approx(float(found.means[last]), abs=1e-5)
    assert float(values[:-1, last].abs().max()) < 1e-5  # what the last layer writes elsewhere is not looked at
    first = found.parts.index(Part(0, "head", 1))
    assert float(values[:-1, first].abs().max()) > 1e-4
    assert found.by_position.n.tolist() == [
        sum(len(row) > -place for row in rows) for place in found.by_position.positions
    ]


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_quantised_weights_are_attributed_as_they_are(llama: Model, rows: list[list[int]], quantization: str) -> None:
    model = load_model(ModelConfig(name=llama.name, dtype="float32", device="cpu", quantization=quantization))
    case = case_of(model, rows)
    score, other = (scores(model, some, case.direction)["logit"] for some in (rows, [row[::-1] for row in rows]))
    query = Query(score, case.subject, torch.arange(len(rows)), batch_size=7)
    ablated, base = causal("ablate", query), plain_scores(case, score, None, len(rows))
    for place, part in list(enumerate(case.subject.parts))[::4]:
        expected = base - plain_scores(case, score, case.subject.only([part]), len(rows))
        assert torch.allclose(ablated.values[:, place], expected, atol=1e-2), part
    exchanged_values = causal("interchange", query, other).values
    assert bool(exchanged_values.isfinite().all())
    assert float(exchanged_values.abs().max()) > 1e-2
    assert bool(gradient(query).values.isfinite().all())
    assert direct(model, rows, case.direction, batch_size=4).checks["incompleteness"] < INCOMPLETE_QUANTISED


def test_a_model_that_cannot_be_started_at_a_layer_runs_whole(
    tmp_path: Path, load: Callable[..., Model], rows: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case("Llama", tmp_path, load, rows)
    score = scores(case.model, rows, case.direction)["log-odds"]
    other = scores(case.model, [row[::-1] for row in rows], case.direction)["log-odds"]
    prompts = torch.arange(len(rows))
    for method in ("restore", "interchange"):
        started = causal(method, Query(score, case.subject, prompts, batch_size=7), other)  # type: ignore[arg-type]
        with monkeypatch.context() as patch:
            patch.setattr("iconoclast_tl.attribution.causal.resumes", lambda *given: False)
            whole = causal(method, Query(score, case.subject, prompts, batch_size=7), other)  # type: ignore[arg-type]
        assert torch.allclose(started.values, whole.values, atol=1e-4)
