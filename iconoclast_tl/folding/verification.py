"""Proof that a fold is its preview: the same prompts through the preview, the reloaded adapter and the reloaded
weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.edits.hooks import preview
from iconoclast_tl.folding.adapter import loaded_adapter
from iconoclast_tl.folding.fold import Fold
from iconoclast_tl.folding.merge import merged_model
from iconoclast_tl.models.batching import over_batches
from iconoclast_tl.models.hook_points import hf_sites
from iconoclast_tl.models.loading import LoadedModel
from iconoclast_tl.models.offloading import is_offloaded, placement
from iconoclast_tl.prompts.chat import TokenBatch, Tokens


@dataclass(frozen=True)
class Agreement:
    """Largest difference of any logit at any prompt position, against its tolerance."""

    max_abs_logit_diff: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.max_abs_logit_diff <= self.tolerance

    def to_json(self) -> dict[str, float | bool]:
        """As it stands in results.json."""
        return {**asdict(self), "ok": self.ok}


@dataclass(frozen=True)
class Fidelity:
    """Preview against adapter, preview against merged weights, and what the edit leaves of its direction."""

    preview_vs_adapter: Agreement
    preview_vs_merged: Agreement | None
    """None where no merged weights were asked for."""
    merged_dtype: str | None
    """In which those are stored."""
    preview_vs_base: float
    """Largest logit difference that the edit makes: what the agreements are small against."""
    residual_fraction: Mapping[str, float]
    n_matrices: int
    """Edited matrices, every expert counted."""
    n: int
    """Prompts."""

    @property
    def ok(self) -> bool:
        """Whether everything that was folded agrees with the preview."""
        merged = self.preview_vs_merged
        return self.preview_vs_adapter.ok and (merged is None or merged.ok)

    def to_json(self) -> dict[str, Any]:
        """As it stands in results.json."""
        return {
            "ok": self.ok,
            "n": self.n,
            "preview_vs_adapter": self.preview_vs_adapter.to_json(),
            "preview_vs_merged": self.preview_vs_merged.to_json() if self.preview_vs_merged else None,
            "merged_dtype": self.merged_dtype,
            "preview_vs_base": self.preview_vs_base,
            "n_matrices": self.n_matrices,
            "residual_fraction": dict(self.residual_fraction),
        }


def verify(
    edit: Edit,
    fold: Fold,
    model: LoadedModel,
    rows: Sequence[Tokens],
    adapter: Path,
    merged: Any | None,
    batch_size: int = 32,
    merged_dtype: torch.dtype | None = None,
) -> Fidelity:
    """Compare logits at every position of `rows` under the preview with those of what was folded.

    The adapter is reloaded from its folder by `peft`. merged: a model of the merged weights; one from `reload_merged`
    makes saving part of the proof. merged_dtype: in which they were stored. Where that is narrower than the model's,
    what rounding to it does to the logits is measured (on merged weights in memory, with it and without), and allowed.
    Of a model that is offloaded it is not measured, and the general tolerance of that dtype holds.
    """
    pairs = ("adapter", "merged", "base", "rounding")
    found: dict[str, list[float]] = {name: [] for name in (*pairs, "scale")}
    narrower = merged_dtype is not None and merged_dtype.itemsize < model.hf.dtype.itemsize
    measured = narrower and not is_offloaded(model.hf)
    exact, rounded = (merged_model(fold, model, dtype) if measured else None for dtype in (None, merged_dtype))

    def compare(batch: TokenBatch) -> None:
        inputs, real = model.inputs(batch), batch.attention_mask.bool()
        with preview(edit, hf_sites(model.hf, edit.components)):
            expected = _logits(model.hf, inputs, real)
        found["scale"].append(float(expected.abs().max()))
        found["base"].append(_difference(expected, _logits(model.hf, inputs, real)))
        with loaded_adapter(model, adapter) as wrapped:
            found["adapter"].append(_difference(expected, _logits(wrapped, inputs, real)))
        if merged is not None:
            found["merged"].append(_difference(expected, _logits(merged, inputs, real)))
        if measured:
            found["rounding"].append(_difference(_logits(exact, inputs, real), _logits(rounded, inputs, real)))

    over_batches(compare, rows, model.pad_id, batch_size)
    # Not max(): it would pass over a NaN, and a comparison that gave NaN is no agreement.
    largest = {name: float(torch.tensor(values).max()) for name, values in found.items() if values}
    tolerance = fidelity_tolerance(model.hf.dtype, largest["scale"], largest["base"])
    of_merged = tolerance + largest.get("rounding", 0.0)
    if merged_dtype is not None and narrower and not measured:
        of_merged = fidelity_tolerance(merged_dtype, largest["scale"], largest["base"])
    return Fidelity(
        Agreement(largest["adapter"], tolerance),
        Agreement(largest["merged"], of_merged) if merged is not None else None,
        str(merged_dtype or model.hf.dtype).removeprefix("torch.") if merged is not None else None,
        largest["base"],
        fold.residual_fraction,
        fold.n_matrices,
        len(rows),
    )


def agreement_on_quantised(
    edit: Edit,
    quantised: LoadedModel,
    full: LoadedModel,
    rows: Sequence[Tokens],
    adapter: Path,
    batch_size: int = 32,
) -> Agreement:
    """The preview on quantised weights against the adapter on them, which was made of full-precision ones.

    They differ by vᵀ(W − W_q), by what quantising moved along the directions. The tolerance is the format's own noise,
    the largest difference that quantising makes to any logit of the unedited model, but never more than a quarter of
    the edit's own effect: an adapter with other strengths is none that rounding explains.
    """
    differences, noise, effect = list[float](), list[float](), list[float]()

    def compare(batch: TokenBatch) -> None:
        inputs, real = quantised.inputs(batch), batch.attention_mask.bool()
        with preview(edit, hf_sites(quantised.hf, edit.components)):
            expected = _logits(quantised.hf, inputs, real)
        base = _logits(quantised.hf, inputs, real)
        effect.append(_difference(expected, base))
        noise.append(_difference(base, _logits(full.hf, full.inputs(batch), real)))
        with loaded_adapter(quantised, adapter) as wrapped:
            differences.append(_difference(expected, _logits(wrapped, inputs, real)))

    over_batches(compare, rows, quantised.pad_id, batch_size)
    largest, allowed, made = (float(torch.tensor(values).max()) for values in (differences, noise, effect))
    return Agreement(largest, min(allowed, made / 4))


def fidelity_tolerance(dtype: torch.dtype, scale: float, effect: float) -> float:
    """Largest logit difference that rounding explains; 1e-4 in float32 and float64.

    In half precision the merged weights themselves are rounded. There a fold must come within a twentieth of the edit's
    own effect on the logits, or within four roundings of the largest logit where the effect is smaller than that: an
    adapter with strengths 5% off is found out, as are most that lack a module. Fold in float32 for the sharper proof.
    """
    if dtype in (torch.float32, torch.float64):
        return 1e-4
    return max(effect / 20, 4 * torch.finfo(dtype).eps * scale)


def reload_merged(model: LoadedModel, merged: Path) -> Any:
    """The merged weights of a folder, as plain `transformers` loads them, placed as the model is."""
    from transformers import AutoModelForCausalLM

    where = getattr(model.hf, "hf_device_map", None)
    if where is None or (len(set(where.values())) == 1 and not is_offloaded(model.hf)):
        reloaded = AutoModelForCausalLM.from_pretrained(str(merged), dtype=model.hf.dtype)
        return reloaded.to(model.device).eval()
    options = placement(where, None)
    return AutoModelForCausalLM.from_pretrained(str(merged), dtype=model.hf.dtype, **options).eval()


def _logits(hf: Any, inputs: dict[str, Tensor], real: Tensor) -> Float[Tensor, "token vocab"]:
    with torch.no_grad():
        logits: Tensor = hf(**inputs).logits
    return logits.float().cpu()[real]


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())
