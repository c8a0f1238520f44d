"""Settings of an edit: what kind is built from directions and strengths."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from iconoclast_tl.foundation.stage_config import Changeable, StageConfig

RowNormalization = Literal["none", "pre", "full"]
Scope = Literal["writers", "stream"]


class EditConfig(StageConfig):
    """What kind of edit is built from directions and strengths."""

    affine: bool | None = None
    """Ablate towards the neutral mean instead of towards zero. Unset: a search by gradient does so where the edit can
    be kept so (experts and merged weights without biases cannot), `outer` tries both, and all else, `tpe` included,
    ablates towards zero."""
    row_normalization: RowNormalization = "none"
    """`none` is exact; `pre` edits the row-normalised weights; `full` also restores the row norms (rank-truncated)."""
    rank: int = Field(3, ge=1)
    """Rank of the LoRA factors under `full`."""
    experts: tuple[str, ...] | None = None
    """Of the routed experts only these, each as `layer.expert`, such as `2.0`; unset: all. Plain edits only."""
    heads: tuple[str, ...] | None = None
    """Of the attention heads only these, each as `layer.head`, such as `2.0`; unset: all. No row normalisation."""
    neurons: tuple[str, ...] | None = None
    """Of the MLPs' neurons only these, each as `layer.neuron`; unset: all. No row normalisation."""
    attention_only: bool = False
    """Leave what the MLPs write alone: for architectures whose experts cannot be reached."""
    scope: Scope = "writers"
    """`writers`: what attention and MLP write (foldable); `stream`: resid_pre too (preview only)."""
    keep_norm: bool = False
    """Bring what is left of a projection back to the length it had, position by position (preview only)."""
    calibrate: float | None = Field(None, gt=0, lt=1)
    """Scale strengths layer by layer by this quantile of the target prompts' projections over their mean, between half
    and twice (`edits.calibration`); unset: not at all."""
    max_overlap: Annotated[float, Changeable] = Field(0.5, ge=0, le=1)
    """Largest |cos| of a direction that is added with one that is ablated by the same edit."""
