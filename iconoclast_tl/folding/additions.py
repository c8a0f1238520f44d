"""Additions to the stream as weights: what enters layer p is what layer p−1 passes on, so that α v becomes a bias.

    r_p = r_{p−1} + a + m   ⇒   r_p + s = r_{p−1} + a + (m + s)        a, m: what attention and MLP write

A constant on the MLP's write is the same addition wherever that write enters the stream as it is, in sequential and in
parallel blocks; where an architecture scales it on its way (Granite's `residual_multiplier`), s is divided by that.
Behind a post-norm a constant is none any more, and of a mixture of experts every token has other weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from iconoclast_tl.architecture.layers import decoder_layers
from iconoclast_tl.architecture.names import names_of
from iconoclast_tl.architecture.post_norm import post_norm
from iconoclast_tl.architecture.sites import Component, Site
from iconoclast_tl.architecture.writers import Writer, require_writers
from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.foundation.errors import UserError


def as_writes(edit: Edit, hf: Any) -> Edit:
    """The same edit with everything that is added to the stream added by the MLP of the layer before.

    hf: the model, with weights or without. Raises `UserError`, with the reason, where that would not be the same.
    """
    if not edit.shifted:
        return edit
    written: dict[Component, Tensor] = {name: values for name, values in edit.shifts.items() if name != "resid_pre"}
    added = [site.layer for site in edit.shifted if site.component == "resid_pre"]
    if added:
        of_stream = edit.shifts["resid_pre"]
        by_mlp = written.get("mlp_out", torch.zeros_like(of_stream)).clone()
        for point in added:
            _require_passed_on(hf, point)
            by_mlp[point - 1] += of_stream[point] / _scale_of_writes(hf)
        written["mlp_out"] = by_mlp
    moved = replace(edit, shifts=written)
    _require_bias_of_one(moved, require_writers(hf, moved.components))
    return moved


def _scale_of_writes(hf: Any) -> float:
    """What an architecture multiplies everything with that is added to the stream."""
    return float(getattr(hf.config.get_text_config(), "residual_multiplier", 1.0))


def _require_passed_on(hf: Any, point: int) -> None:
    want = "an addition at a point after a layer whose MLP writes into the stream as it is"
    if point == 0:
        raise UserError(
            "an addition at residual point 0 cannot be folded",
            got="what enters layer 0: the embedding, which neither o_proj nor down_proj writes",
            want=want,
            mend="add at point 1 or later, or keep it a preview",
        )
    if post_norm(decoder_layers(hf)[point - 1], "mlp_out", names_of(hf)) is not None:
        raise UserError(
            f"an addition at residual point {point} cannot be folded into {type(hf).__name__}",
            got=f"a norm between what layer {point - 1} writes and the stream, which no constant survives",
            want=want,
            mend="keep it a preview",
        )


def _require_bias_of_one(edit: Edit, writers: Mapping[Site, Writer]) -> None:
    """A constant is one linear's bias: a mixture adds what its experts write, by weights that no token shares."""
    mixed = [site for site in edit.shifted if site in writers and not writers[site].is_dense]
    if mixed:
        raise UserError(
            f"an addition to what enters layer {mixed[0].layer + 1} cannot be folded into experts",
            got=f"a mixture at {mixed[0]}, which weights what its experts write differently for every token",
            want="a layer before it whose MLP is dense",
            mend="add after a dense layer, or keep it a preview",
        )
