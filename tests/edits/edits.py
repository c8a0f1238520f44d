"""Random edits for tests."""

from __future__ import annotations

from dataclasses import replace

import torch

from iconoclast_tl.directions.geometry import orthonormalize
from iconoclast_tl.edits.config import RowNormalization
from iconoclast_tl.edits.edit import Edit, SiteEdit
from iconoclast_tl.edits.updates import apply_update, linear_update


def random_edit(
    n_layers: int = 3,
    d_model: int = 24,
    k: int = 1,
    affine: bool = False,
    row_normalization: RowNormalization = "none",
    stream: bool = False,
    seed: int = 0,
) -> Edit:
    """Random directions; strengths of both signs, above and below 1; layer 1's mlp_out left alone."""
    generator = torch.Generator().manual_seed(seed)
    components = ["attn_out", "mlp_out", *(["resid_pre"] if stream else [])]
    strengths = {name: torch.rand(k, n_layers, generator=generator) * 2 - 0.5 for name in components}
    strengths["mlp_out"][:, 1] = 0
    centres = {name: torch.randn(k, n_layers, generator=generator) for name in components} if affine else {}
    vectors = orthonormalize(torch.randn(k, n_layers, d_model, generator=generator))
    return Edit(directions=vectors, strengths=strengths, centres=centres, row_normalization=row_normalization, rank=2)


def scaled(edit: Edit, factor: float) -> Edit:
    """The same edit with every strength multiplied by `factor`."""
    return replace(edit, strengths={name: values * factor for name, values in edit.strengths.items()})


def project(y: torch.Tensor, at: SiteEdit) -> torch.Tensor:
    """What a plain or affine edit makes of y."""
    return apply_update(y, None, linear_update(at.directions, at.centres, "none", None), at.strengths[None])
