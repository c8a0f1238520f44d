"""An edit of one matrix as LoRA factors: W' = W + BA, b' = b + β.

W is (d_model, d_in) and writes y = xWᵀ + b. With V the (r, d_model) orthonormal directions, Λ = diag(λ), D = diag
of W's row norms:

    none   ΔW = −Vᵀ Λ (V W ∘ f)                   exact, rank r; f: factors of heads or neurons by column, or 1
    pre    ΔW = −(D Vᵀ) Λ (V D⁻¹ W)               the edit of the row-normalised D⁻¹W, put back in units of W; rank r
    full   ΔW ≈ D·rownorm(D⁻¹W − VᵀΛV D⁻¹W) − W    row norms restored; truncated by SVD to `rank`
    always β  = −Vᵀ Λ (V b · mean f − c) + s      c: of all parts together, Σ_p f_p c_p; s: what is added, or 0

`pre` and `full` are oblique: they leave part of V in W' wherever row norms differ, which `along` measures.
`pre` and `full` are Heretic's names; `full` is grimjim's norm-preserving biprojected ablation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from iconoclast_tl.edits.edit import SiteEdit

COLUMNS = 4096
"""Of a matrix, looked at together in float64."""
EXACT_SVD_UP_TO = 1024
"""Smaller side of a matrix up to which `full` takes the exact SVD (a randomised one, seeded, above)."""


@dataclass(frozen=True)
class Factors:
    """ΔW = b @ a and the change of the bias, if any; in float32, or float64 for float64 weights."""

    a: Float[Tensor, "r d_in"]
    b: Float[Tensor, "d_model r"]
    bias: Float[Tensor, "d_model"] | None

    @property
    def rank(self) -> int:
        """Rank of the LoRA pair."""
        return int(self.a.shape[0])


def factors(
    edit: SiteEdit,
    weight: Float[Tensor, "d_model d_in"],
    bias: Float[Tensor, "d_model"] | None,
    row_normalization: str = "none",
    rank: int = 3,
) -> Factors:
    """LoRA factors of an edit of W; the formulas stand at the top of this file."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    w = weight.detach().to(dtype)
    v = edit.directions.to(w)
    strengths = edit.strengths.to(w)
    delta_bias = _bias_change(edit, bias, w)
    if not len(v):  # an addition alone; an adapter has no factors of rank 0
        return Factors(w.new_zeros(1, w.shape[1]), w.new_zeros(w.shape[0], 1), delta_bias)
    if row_normalization == "none":
        of_input = edit.of_input(w.shape[1])
        projected = v @ w if of_input is None else (v @ w) * of_input.to(w)
        return Factors(projected, -v.T * strengths, delta_bias)
    norms = w.norm(dim=1, keepdim=True)
    unit = torch.where(norms > 0, w / norms.clamp(min=torch.finfo(dtype).tiny), torch.zeros_like(w))
    if row_normalization == "pre":
        return Factors(v @ unit, -(norms * v.T) * strengths, delta_bias)
    edited = unit - (v.T * strengths) @ (v @ unit)
    lengths = edited.norm(dim=1, keepdim=True).clamp(min=torch.finfo(dtype).tiny)
    return Factors(*_truncate(norms * edited / lengths - w, rank), delta_bias)


@dataclass(frozen=True)
class Along:
    """How much of the directions is in matrices: ‖V W‖² before and ‖V W'‖² after, summed over some of them."""

    before: float = 0.0
    after: float = 0.0

    def __add__(self, other: Along) -> Along:
        return Along(self.before + other.before, self.after + other.after)

    @property
    def share_left(self) -> float:
        """‖V W'‖ / ‖V W‖ (Frobenius): the share of the directions that is still in the edited matrices.

        |1 − λ| for an exact edit with one strength; under `pre` and `full` more or less than that.
        """
        return float((self.after / max(self.before, 1e-300)) ** 0.5)


def along(edit: SiteEdit, weight: Float[Tensor, "d_model d_in"], change: Factors) -> Along:
    """Of one matrix."""
    v, found = edit.directions.double().to(weight.device), Along()
    kept = v @ change.b.double()
    # By columns: a float64 copy of a whole matrix would be what a fold needs most memory for.
    for columns, a in zip(torch.split(weight.detach(), COLUMNS, 1), torch.split(change.a, COLUMNS, 1), strict=True):
        written = v @ columns.double()
        found += Along(float(written.square().sum()), float((written + kept @ a.double()).square().sum()))
    return found


def _bias_change(edit: SiteEdit, bias: Tensor | None, like: Tensor) -> Tensor | None:
    v = edit.directions.to(like)
    along = v @ bias.detach().to(like) if bias is not None else torch.zeros(len(v)).to(like)
    mean = 1.0 if edit.parts is None else float(edit.parts.mean())
    change = -v.T @ (edit.strengths.to(like) * (along * mean - edit.centres.to(like)))
    change = change if edit.shift is None else change + edit.shift.to(like)
    return change if bool(change.any()) else None


def _truncate(delta: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best rank-`rank` factors (A, B) of `delta`: B = U√S, A = √S Vᵀ, reproducible on one machine."""
    rank = min(rank, *delta.shape)
    if min(delta.shape) <= EXACT_SVD_UP_TO:
        u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    else:
        # manual_seed() seeds every device, so the state of every device is kept.
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(delta, q=2 * rank + 4, niter=6)
        vh = v.T
    root = s[:rank].sqrt()
    return root[:, None] * vh[:rank], u[:, :rank] * root
