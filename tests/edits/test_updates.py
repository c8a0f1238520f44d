"""Many candidates in one batch: every row as if its candidate had been alone; strengths with gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from iconoclast_tl.architecture.hook_points import hf_sites
from iconoclast_tl.edits.config import RowNormalization
from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.edits.hooks import hooked, preview
from iconoclast_tl.edits.updates import Updates, edit_updates, stack_updates
from iconoclast_tl.execution.generation import Lanes, generate
from iconoclast_tl.models.model import Model
from tests.edits.edits import random_edit, scaled

IDS = torch.arange(4, 16).reshape(2, 6)


def logits(model: Model, ids: torch.Tensor = IDS) -> torch.Tensor:
    return model.hf(ids).logits


def candidates(kind: RowNormalization, affine: bool) -> list[Edit]:
    """The same directions at three strengths (one of them none), and other directions with more of them."""
    first = random_edit(row_normalization=kind, affine=affine)
    other = random_edit(k=2, row_normalization=kind, affine=affine, seed=3)
    return [first, scaled(first, -0.5), scaled(first, 0.0), other]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["none", "pre", "full"])
@pytest.mark.parametrize("affine", [False, True])
def test_a_batch_of_candidates_equals_separate_runs(biased: Model, kind: RowNormalization, affine: bool) -> None:
    sites, edits = hf_sites(biased.hf), candidates(kind, affine)
    separate = []
    for edit in edits:
        with preview(edit, sites):
            separate.append(logits(biased))
    with hooked(stack_updates([edit_updates(edit, sites) for edit in edits]), sites) as rows:
        rows.candidates = torch.arange(4).repeat_interleave(2)
        together = logits(biased, IDS.repeat(4, 1)).reshape(4, 2, 6, -1)
        # Products of other shapes add up in another order: rounding of float32 logits of size 10, and no more.
        assert torch.allclose(together, torch.stack(separate), atol=2e-5)
        rows.candidates = torch.arange(4).flip(0).repeat_interleave(2)
        swapped = logits(biased, IDS.repeat(4, 1)).reshape(4, 2, 6, -1)
    assert torch.allclose(swapped.flip(0), torch.stack(separate), atol=2e-5)
    assert not torch.allclose(swapped, torch.stack(separate), atol=1e-2)  # a row that got another's candidate shows
    assert torch.equal(logits(biased), separate[2])


@torch.no_grad()
def test_strengths_of_one_direction_share_its_vectors_and_no_row_sees_its_neighbours(llama: Model) -> None:
    sites, edit = hf_sites(llama.hf), random_edit()
    strengths = [scaled(edit, factor) for factor in (1.0, 0.3, 2.0)]
    stacked = stack_updates([edit_updates(one, sites) for one in strengths])
    assert all(len(update.reads) == 1 for update in stacked.at.values())  # the vectors are held once
    of_row = torch.arange(3).repeat_interleave(2)
    with hooked(stacked, sites) as rows:
        rows.candidates = of_row
        together = logits(llama, IDS.repeat(3, 1))
        filled = []
        for c in range(3):
            rows.candidates = torch.full_like(of_row, c)
            filled.append(logits(llama, IDS.repeat(3, 1)))
    for c, one in enumerate(strengths):
        # Batches of one shape, rows in the same places: the same sums in the same order on every processor.
        assert torch.equal(together[of_row == c], filled[c][of_row == c])
        assert not torch.allclose(together[of_row == c], filled[c - 1][of_row == c], atol=1e-2)
        with preview(one, sites):  # a batch of another shape: float32's rounding of logits of size 10
            assert torch.allclose(logits(llama), together[of_row == c], atol=2e-5)


@pytest.mark.parametrize("kind", ["none", "pre"])
def test_the_gradient_of_strengths_equals_finite_differences(biased_double: Model, kind: RowNormalization) -> None:
    model, edit = biased_double, random_edit(row_normalization=kind, affine=True)
    sites = hf_sites(model.hf)
    built = edit_updates(edit, sites)
    strengths = {site: values.double().requires_grad_() for site, values in built.strengths.items()}

    def score(values: dict) -> torch.Tensor:
        with hooked(Updates(built.at, values), sites):
            return logits(model)[:, -1, 7].sum()

    score(strengths).backward()
    step = 1e-2
    for site, values in strengths.items():
        up, down = ({**strengths, site: values.detach() + sign * step} for sign in (1, -1))
        with torch.no_grad():
            expected = (score(up) - score(down)) / (2 * step)
        assert values.grad is not None
        # Llama's norms compute in float32 whatever the model's dtype: 1e-6 of rounding over the step, and its square
        assert float(values.grad) == pytest.approx(float(expected), rel=5e-3, abs=1e-3), site


def test_generation_keeps_every_row_with_its_candidate(llama: Model, rows: list[list[int]]) -> None:
    sites, edits = hf_sites(llama.hf), candidates("none", affine=False)
    llama.hf.generation_config.eos_token_id = generate(llama, rows, 12, 50)[0].tokens[4]  # so that rows end early
    separate = []
    for edit in edits:
        with preview(edit, sites):
            separate.append(generate(llama, rows, 12, 50))
    assert separate[0] != separate[3]
    lanes = [(c, row) for c in range(4) for row in range(len(rows))]
    with hooked(stack_updates([edit_updates(edit, sites) for edit in edits]), sites) as assigned:
        for batch_size in (5, 100):
            found = generate(
                llama, [rows[r] for _, r in lanes], 12, batch_size, lanes=Lanes(assigned, [c for c, _ in lanes])
            )
            assert found == [separate[c][r] for c, r in lanes]


def test_a_decided_row_is_cut_and_the_others_go_on(llama: Model, rows: list[list[int]]) -> None:
    whole = generate(llama, rows, 12, 50)
    first = whole[0].text.split()[0]
    cut = generate(llama, rows, 12, 50, decided=lambda text: first in text.split())
    for before, after in zip(whole, cut, strict=True):
        assert before.tokens[: len(after.tokens)] == after.tokens
        if first not in before.text.split():
            assert after == before
    assert len(cut[0].tokens) == 4  # asked every fourth token
    assert not cut[0].finished


def test_edits_of_full_and_of_none_do_not_mix(llama: Model) -> None:
    sites, plain = hf_sites(llama.hf), random_edit()
    with pytest.raises(ValueError, match="one batch"):
        stack_updates([edit_updates(edit, sites) for edit in (plain, replace(plain, row_normalization="full"))])
