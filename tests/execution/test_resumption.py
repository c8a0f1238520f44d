"""Starting at a layer gives the logits of the whole model, to the bit, and leaves nothing behind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from iconoclast_tl.architecture.hook_points import hf_sites
from iconoclast_tl.architecture.layers import decoder_layers
from iconoclast_tl.edits.hooks import hooked, preview
from iconoclast_tl.edits.updates import edit_updates, stack_updates
from iconoclast_tl.evaluation.metrics.divergence import BaseContinuations
from iconoclast_tl.execution.generation import generate
from iconoclast_tl.execution.resumption import entering, resumes, starting_at
from iconoclast_tl.execution.teacher_forcing import entered, force, forced_logits
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.tokens import left_pad
from tests.edits.edits import random_edit, scaled


def edit_from(layer: int) -> Any:
    edit = random_edit()
    kept = (torch.arange(3) >= layer).float()
    return replace(edit, strengths={name: values * kept for name, values in edit.strengths.items()})


@torch.no_grad()
@pytest.mark.parametrize("layer", [1, 2])
def test_a_run_from_a_layer_is_the_whole_run(llama: Model, rows: list[list[int]], layer: int) -> None:
    batch = left_pad(rows, llama.pad_id)
    kept = entering(llama, batch, layer)
    inputs = llama.inputs(batch)
    for edit, same in ((edit_from(3), True), (edit_from(layer), True), (edit_from(layer - 1), False)):
        with preview(edit, hf_sites(llama.hf)):
            whole = llama.hf(**inputs, use_cache=False).logits
            with starting_at(llama, kept):
                found = llama.hf(**inputs, use_cache=False).logits
        assert torch.equal(found, whole) == same  # an edit below the start is not seen: the control
    assert resumes(llama, batch, layer)


@torch.no_grad()
def test_an_edit_of_what_enters_the_first_layer_that_is_run_is_seen(llama: Model, rows: list[list[int]]) -> None:
    batch, edit = left_pad(rows, llama.pad_id), random_edit(stream=True)
    only = replace(edit, strengths={"resid_pre": edit.strengths["resid_pre"] * torch.tensor([0.0, 1.0, 0.0])})
    kept, inputs = entering(llama, batch, 1), llama.inputs(batch)
    base = llama.hf(**inputs, use_cache=False).logits
    with preview(only, hf_sites(llama.hf)):
        whole = llama.hf(**inputs, use_cache=False).logits
        with starting_at(llama, kept):
            assert torch.equal(llama.hf(**inputs, use_cache=False).logits, whole)
    assert not torch.allclose(whole, base, atol=1e-2)


def test_nothing_is_left_behind(llama: Model, rows: list[list[int]]) -> None:
    kept = entering(llama, left_pad(rows, llama.pad_id), 2)
    with pytest.raises(RuntimeError, match="inside"), starting_at(llama, kept):
        raise RuntimeError("inside")
    assert not [layer for layer in decoder_layers(llama.hf) if "forward" in layer.__dict__ or layer._forward_pre_hooks]


def test_a_layer_that_needs_more_than_the_stream_is_found_out(
    llama: Model, rows: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = type(decoder_layers(llama.hf)[0])
    before, seen = layer.forward, []

    def counting(self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(self)  # every layer's output depends on how many ran before it
        return before(self, hidden_states, *args, **kwargs) * (1 + 0.1 * (len(seen) % 4))

    monkeypatch.setattr(layer, "forward", counting)
    assert not resumes(llama, left_pad(rows, llama.pad_id), 1)


@torch.no_grad()
def test_forced_predictions_are_those_of_single_prompts(llama: Model, rows: list[list[int]]) -> None:
    said = [response.tokens[: 1 + i % 4] for i, response in enumerate(generate(llama, rows, 5, 4))]
    forced = force(rows, said, 4, llama.pad_id)
    resumed = entered(llama, forced, 2, 3)
    orders = [([4, 0, 5], 2), ([4, 3, 5], 4)]  # columns that no row fills are left out
    laid_out = [(which.take(torch.tensor(order), 2), order, k) for which in (forced, resumed) for order, k in orders]
    for laid, order, k in [*laid_out, (forced.beginning(2).take(torch.tensor([3, 0]), 2), [3, 0], 2)]:
        logits = forced_logits(llama, laid)
        assert logits.shape[:2] == (2 * len(order), k)
        for place, row in enumerate(order * 2):
            fed = [*rows[row], *said[row][:-1]]
            alone = llama.hf(torch.tensor([fed])).logits[0, len(rows[row]) - 1 :]
            assert torch.allclose(logits[place, : len(said[row])], alone[:k], atol=1e-5)
            assert laid.real[place].tolist() == [t < len(said[row]) for t in range(k)]


@torch.no_grad()
def test_candidates_move_as_each_alone_and_unchanged_responses_are_unchanged(
    llama: Model, rows: list[list[int]]
) -> None:
    said = generate(llama, rows, 6, 50)
    base = BaseContinuations(llama, rows, [one.tokens for one in said], 3, 4)
    sites, edits = hf_sites(llama.hf), [scaled(random_edit(), factor) for factor in (0.02, 0.1, 1.0)]
    with hooked(stack_updates([edit_updates(edit, sites) for edit in edits]), sites) as assigned:
        moved = base.moved(assigned, 3)
    stays = []
    for c, edit in enumerate(edits):
        with preview(edit, sites):
            alone, now = base.divergence(), generate(llama, rows, 6, 50)
        assert moved.divergences[c].sequence == pytest.approx(alone.sequence, rel=1e-4, abs=1e-7)
        stays += [(bool(moved.unchanged[c, i]), now[i] == said[i]) for i in range(len(rows))]
    assert all(told == true for told, true in stays)
    assert {told for told, _ in stays} == {True, False}


def test_a_layer_that_cannot_be_handed_the_stream_is_found_out(
    llama: Model, rows: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, batch = type(decoder_layers(llama.hf)[0]), left_pad(rows, llama.pad_id)
    before, first = layer.forward, decoder_layers(llama.hf)[0]

    def marking(self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        found = before(self, hidden_states, *args, **kwargs)
        found.mark = 1 if self is first else hidden_states.mark + 1  # passed on beside the stream
        return found

    assert resumes(llama, batch, 2)
    monkeypatch.setattr(layer, "forward", marking)
    assert not resumes(llama, batch, 2)
    assert not [layer for layer in decoder_layers(llama.hf) if "forward" in layer.__dict__ or layer._forward_pre_hooks]


@torch.no_grad()
def test_what_enters_is_kept_whatever_becomes_of_the_stream(
    llama: Model, rows: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, batch = type(decoder_layers(llama.hf)[0]), left_pad(rows, llama.pad_id)
    before, expected = layer.forward, entering(llama, batch, 1).states

    def in_place(self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return hidden_states.copy_(before(self, hidden_states, *args, **kwargs))

    monkeypatch.setattr(layer, "forward", in_place)
    assert torch.equal(entering(llama, batch, 1).states, expected)
    assert float(expected.abs().max()) > 0


@pytest.mark.parametrize("error", [KeyError("hidden_states"), AssertionError(), RuntimeError("shapes")])
def test_a_model_that_fails_in_any_way_when_it_is_started_at_a_layer_runs_whole(
    llama: Model, rows: list[list[int]], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*args: Any) -> Any:
        raise error

    monkeypatch.setattr("iconoclast_tl.execution.resumption.entering", fail)
    assert not resumes(llama, left_pad(rows, llama.pad_id), 1)


def test_want_of_memory_says_nothing_of_whether_a_model_resumes(
    llama: Model, rows: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> Any:
        raise torch.OutOfMemoryError("too many")

    monkeypatch.setattr("iconoclast_tl.execution.resumption.entering", fail)
    with pytest.raises(torch.OutOfMemoryError):
        resumes(llama, left_pad(rows, llama.pad_id), 1)


@torch.no_grad()
def test_a_forward_that_someone_else_put_on_a_layer_stays(llama: Model, rows: list[list[int]]) -> None:
    layer = decoder_layers(llama.hf)[0]
    before = layer.forward

    def dispatched(*args: Any, **kwargs: Any) -> Any:  # as accelerate does
        return before(*args, **kwargs)

    layer.forward = dispatched
    assert resumes(llama, left_pad(rows, llama.pad_id), 2)
    assert layer.forward is dispatched
    assert "forward" not in decoder_layers(llama.hf)[1].__dict__
