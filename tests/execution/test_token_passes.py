"""Token passes are the positions that are computed, layer by layer, forward and back."""

from __future__ import annotations

import torch

from iconoclast_tl.architecture.hook_points import hf_sites
from iconoclast_tl.edits.hooks import hooked
from iconoclast_tl.edits.updates import Updates, edit_updates
from iconoclast_tl.execution.resumption import entering, starting_at
from iconoclast_tl.execution.token_passes import counted
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.tokens import left_pad
from tests.edits.edits import random_edit


def test_positions_are_counted_layer_by_layer_and_padding_with_them(llama: Model, rows: list[list[int]]) -> None:
    batch = left_pad(rows, 0)
    size = batch.input_ids.numel()
    with counted(llama.hf) as whole, torch.no_grad():
        llama.hf(**llama.inputs(batch))
        llama.hf(**llama.inputs(batch))
    assert whole.to_json() == {"forward": 2 * size, "backward": 0}
    with counted(llama.hf) as below:
        kept = entering(llama, batch, 2)
    assert below.forward_steps == 2 * size  # of 3 layers
    with counted(llama.hf) as late, torch.no_grad(), starting_at(llama, kept):
        llama.hf(**llama.inputs(batch))
    assert late.forward_steps == size
    llama.hf(**llama.inputs(batch))
    assert late.forward_steps == size  # counting ends with the block


def test_going_back_counts_where_a_gradient_goes(llama: Model, rows: list[list[int]]) -> None:
    batch, sites = left_pad(rows, 0), hf_sites(llama.hf)
    size, updates = batch.input_ids.numel(), edit_updates(random_edit(), sites)
    for first, layers in ((0, 3), (2, 1)):
        strengths = {
            site: given.clone().requires_grad_(site.layer >= first) for site, given in updates.strengths.items()
        }
        with hooked(Updates(updates.at, strengths), sites), counted(llama.hf) as passes:
            llama.hf(**llama.inputs(batch)).logits.sum().backward()
        assert passes.forward_steps == 3 * size
        assert passes.backward_steps == layers * size
