"""What all rows begin with is run once, and nothing is different by it but rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from iconoclast_tl.architecture.hook_points import hf_sites
from iconoclast_tl.edits.hooks import hooked
from iconoclast_tl.edits.updates import Updates, edit_updates, stack_updates
from iconoclast_tl.execution import generation
from iconoclast_tl.execution.generation import Lanes, generate
from iconoclast_tl.execution.head import head_logits
from iconoclast_tl.execution.shared_prefix import Prefix, shared_prefix, shares
from iconoclast_tl.execution.teacher_forcing import entered, force, forced_states
from iconoclast_tl.execution.token_passes import counted
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.tokens import Tokens
from tests.architectures import save_architecture
from tests.edits.edits import random_edit
from tests.execution.ties import without_ties

COMMON = [9, 8, 7, 6, 5, 10]


@pytest.fixture
def common(rows: list[Tokens]) -> list[Tokens]:
    """Rows that begin alike."""
    return [COMMON + row for row in rows]


def said(rows: list[Tokens]) -> list[Tokens]:
    """A continuation of every row, of different lengths."""
    return [[20 + i, 30, 31, 32][: 1 + i % 4] for i in range(len(rows))]


def candidates(model: Model, layer: int) -> Updates:
    """Three edits of the layers from `layer` on."""
    sites = hf_sites(model.hf)
    edits = [random_edit(seed=seed) for seed in range(3)]
    every = [edit_updates(edit, sites) for edit in edits]
    late = [
        Updates(*({site: value for site, value in of.items() if site.layer >= layer} for of in (one.at, one.strengths)))
        for one in every
    ]
    return stack_updates(late)


def test_a_prefix_is_what_all_rows_share_and_leaves_each_a_token(llama: Model, rows: list[Tokens]) -> None:
    assert shared_prefix(llama, rows) is None
    found = shared_prefix(llama, [COMMON + row for row in rows])
    assert found is not None
    assert list(found.tokens) == COMMON
    whole = shared_prefix(llama, [COMMON, COMMON])
    assert whole is not None
    assert list(whole.tokens) == COMMON[:-1]
    assert shared_prefix(llama, [COMMON]) is None  # one row shares nothing
    assert shared_prefix(llama, [COMMON[:3] + row for row in rows]) is None  # too short to be worth it


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 2])
def test_predictions_after_a_shared_prefix_are_those_of_whole_rows(
    llama: Model, common: list[Tokens], layer: int
) -> None:
    prefix = shared_prefix(llama, common)
    whole, shared = (entered(llama, force(common, said(common), 4, 0, one), layer, 3) for one in (None, prefix))
    n, updates = 3, candidates(llama, layer)
    assert shared.batch.input_ids.shape[1] == whole.batch.input_ids.shape[1] - len(COMMON)
    part = torch.tensor([5, 0, 2])
    with hooked(updates, hf_sites(llama.hf)) as assigned:
        found = []
        for forced in (whole.take(part, n), shared.take(part, n)):
            assigned.candidates = torch.arange(n).repeat_interleave(len(part))
            found.append(head_logits(llama, forced_states(llama, forced, assigned, n))[forced.real])
            assert assigned.candidates.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]  # as it was
        others = replace(shared.take(part, n), prefix=Prefix(tuple(COMMON[::-1])))
        wrong = head_logits(llama, forced_states(llama, others, assigned, n))[others.real]
    assert torch.allclose(found[0], found[1], atol=1e-5)
    assert not torch.allclose(found[0], wrong, atol=1e-3)


def test_gradients_flow_through_the_prefix(llama: Model, common: list[Tokens]) -> None:
    prefix, sites = shared_prefix(llama, common), hf_sites(llama.hf)
    gradients = []
    for one in (None, prefix):
        updates = candidates(llama, 0)
        leaves = {site: given.clone().requires_grad_() for site, given in updates.strengths.items()}
        forced = force(common, said(common), 4, 0, one).take(torch.tensor([1, 3]), 3)
        with hooked(Updates(updates.at, leaves), sites) as assigned:
            assigned.candidates = torch.arange(3).repeat_interleave(2)
            forced_states(llama, forced, assigned, 3)[forced.real].square().sum().backward()
        gradients.append(torch.stack([leaf.grad for leaf in leaves.values() if leaf.grad is not None]))
    assert len(gradients[0]) > 4
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-3, atol=1e-5 * float(gradients[0].abs().max()))


@pytest.mark.parametrize("batch_size", [2, 50])
def test_generation_after_a_shared_prefix_says_the_same(
    llama: Model, common: list[Tokens], batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, order = common * 3, [i // len(common) for i in range(3 * len(common))]
    assert shares(llama)  # found out outside of what is counted
    passes, found = [], []
    for sharing in (True, False):
        if not sharing:
            monkeypatch.setattr(generation, "shared_prefix", lambda model, rows: None)
        hooks = hooked(candidates(llama, 0), hf_sites(llama.hf))
        with hooks as assigned, counted(llama.hf) as meter, without_ties(llama):
            responses = generate(llama, rows, 6, batch_size, lanes=Lanes(assigned, order))
        found.append([response.tokens for response in responses])
        passes.append(meter.forward)
    assert found[0] == found[1]
    assert passes[1] - passes[0] == (len(rows) - 3) * len(COMMON)


def test_a_cache_of_another_kind_is_not_shared(load: Callable[..., Model], tmp_path: Path) -> None:
    save_architecture(tmp_path / "windowed", "Gemma 2")
    model = load(tmp_path / "windowed")
    assert not shares(model)
    assert shared_prefix(model, [[*COMMON, 1], [*COMMON, 2]]) is None
