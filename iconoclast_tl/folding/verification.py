"""Verify that a fold is its preview: the same prompts through the preview, the reloaded adapter and the reloaded
merged weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from iconoclast_tl.architecture.hook_points import hf_sites
from iconoclast_tl.architecture.offloading import is_offloaded, placement
from iconoclast_tl.architecture.writers import known_writers
from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.edits.hooks import preview
from iconoclast_tl.execution.batching import over_batches
from iconoclast_tl.folding.fold import Fold, fold
from iconoclast_tl.folding.merge import merged_model
from iconoclast_tl.folding.merge_files import stored_parts
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.adapter import loaded_adapter
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.contrast import Split
from iconoclast_tl.prompts.prompt import Prompt
from iconoclast_tl.prompts.tokens import TokenBatch, Tokens, require_context


@dataclass(frozen=True)
class LogitCheck:
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


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """How far adapter and merged weights are from the preview, and what the edit leaves of its direction."""

    preview_vs_adapter: LogitCheck
    preview_vs_merged: LogitCheck | None
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

    def __repr__(self) -> str:
        """Such as `Fidelity(ok: adapter differs by 7.6e-06, tolerance 0.0001; 200 prompts)`."""
        checks = {"adapter": self.preview_vs_adapter, "merged weights": self.preview_vs_merged}
        said = [
            f"{name} differ{'s' if name == 'adapter' else ''} by {one.max_abs_logit_diff:.2g}, "
            f"tolerance {one.tolerance:.2g}"
            for name, one in checks.items()
            if one is not None
        ]
        return f"Fidelity({'ok' if self.ok else 'NOT the preview'}: {'; '.join(said)}; {self.n} prompts)"

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
    model: Model,
    adapter: str | PathLike[str],
    prompts: Split | Sequence[str | Prompt],
    *,
    merged: str | PathLike[str] | None = None,
    batch_size: int = 32,
) -> Fidelity:
    """Whether an adapter (and merged weights) on the disk is what the preview of `edit` shows.

        assert verify(edit, model, adapter, data.test).ok

    The adapter is reloaded by plain `peft`, the merged weights by plain `transformers`. Logits are compared at every
    position of every prompt. Raises `UserError` for no prompts, an edit or an adapter of another model, and a folder
    that holds neither adapter nor weights.
    """
    asked = _all_prompts(prompts)
    made = fold(edit, model)
    rows = [model.chat.encode(prompt) for prompt in asked]
    require_context(rows, 0, model.context_length)
    weights, stored = None, None
    if merged is not None:
        _require_weights(Path(merged))
        weights, stored = reload_merged(model, Path(merged)), stored_dtype(made, Path(merged))
    return agreement_of_fold(edit, made, rows, Path(adapter), weights, batch_size=batch_size, merged_dtype=stored)


def agreement_of_fold(
    edit: Edit,
    made: Fold,
    rows: Sequence[Tokens],
    adapter: Path,
    merged: Any | None,
    *,
    batch_size: int = 32,
    merged_dtype: torch.dtype | None = None,
) -> Fidelity:
    """Compare logits at every position of `rows` under the preview with those of what was folded.

    The adapter is reloaded from its folder by `peft`. merged: a model of the merged weights; one from `reload_merged`
    makes saving part of the proof. merged_dtype: in which they were stored. Where that is narrower than the model's,
    what rounding to it does to the logits is measured (on merged weights in memory, with it and without), and allowed.
    Of a model that is offloaded it is not measured, and the general tolerance of that dtype holds.
    """
    model = made.model
    pairs = ("adapter", "merged", "base", "rounding")
    found: dict[str, list[float]] = {name: [] for name in (*pairs, "scale")}
    narrower = merged_dtype is not None and merged_dtype.itemsize < model.hf.dtype.itemsize
    measured = narrower and not is_offloaded(model.hf)
    exact, rounded = (merged_model(made, dtype) if measured else None for dtype in (None, merged_dtype))

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
    stored = str(merged_dtype or model.hf.dtype).removeprefix("torch.")
    return Fidelity(
        preview_vs_adapter=LogitCheck(largest["adapter"], tolerance),
        preview_vs_merged=LogitCheck(largest["merged"], of_merged) if merged is not None else None,
        merged_dtype=stored if merged is not None else None,
        preview_vs_base=largest["base"],
        residual_fraction=made.residual_fraction,
        n_matrices=made.n_matrices,
        n=len(rows),
    )


def stored_dtype(made: Fold, folder: Path) -> torch.dtype:
    """The narrowest dtype in which the files of `folder` hold the matrices that were edited."""
    writers = known_writers(made.model.hf)
    edited = {site: writers[site] for site in made.edit.sites if site in writers}
    parts = stored_parts(edited, made.model.hf, folder)
    return min((part.weight.dtype for part in parts), key=lambda dtype: dtype.itemsize)


def _all_prompts(prompts: Split | Sequence[str | Prompt]) -> list[Prompt]:
    given = [*prompts.target, *prompts.neutral, *prompts.borderline] if isinstance(prompts, Split) else prompts
    if isinstance(given, str):
        raise UserError("prompts are one text", want="a list of prompts, or a split such as data.test")
    if not given:
        raise UserError("there are no prompts to compare on", want="a list of prompts, or a split such as data.test")
    return [prompt if isinstance(prompt, Prompt) else Prompt(prompt) for prompt in given]


def _require_weights(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no merged weights", got="no config.json", want="a folder of `Fold.merge`")


def agreement_on_quantised(
    edit: Edit,
    quantised: Model,
    full: Model,
    rows: Sequence[Tokens],
    adapter: Path,
    batch_size: int = 32,
) -> LogitCheck:
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
    return LogitCheck(largest, min(allowed, made / 4))


def fidelity_tolerance(dtype: torch.dtype, scale: float, effect: float) -> float:
    """Largest logit difference that rounding explains; 1e-4 in float32 and float64.

    In half precision the merged weights themselves are rounded. There a fold must come within a twentieth of the edit's
    own effect on the logits, or within four roundings of the largest logit where the effect is smaller than that: an
    adapter with strengths 5% off is found out, as are most that lack a module. Fold in float32 for the sharper proof.
    """
    if dtype in (torch.float32, torch.float64):
        return 1e-4
    return max(effect / 20, 4 * torch.finfo(dtype).eps * scale)


def reload_merged(model: Model, merged: Path) -> Any:
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
