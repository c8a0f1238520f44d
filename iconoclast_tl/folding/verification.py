"""Verify that a fold is its preview: the same prompts through the preview, the reloaded adapter and the reloaded
merged weights.

Two questions, since none answers for the other. Whether the model as a whole says the same: the largest difference of
any logit, against the model's own rounding (`folding.rounding`), which grows with depth and hides a small mistake in
one module of many. And whether every module does the same on the same input (`folding.by_module`), which nothing hides.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from iconoclast_tl.architecture.hook_points import hf_sites
from iconoclast_tl.architecture.offloading import is_offloaded, placement
from iconoclast_tl.architecture.writers import known_writers
from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.edits.hooks import preview
from iconoclast_tl.execution.batching import over_batches
from iconoclast_tl.folding.by_module import module_check, previewed_modules
from iconoclast_tl.folding.fidelity import Fidelity, LogitCheck
from iconoclast_tl.folding.fold import Fold, fold
from iconoclast_tl.folding.merge_files import stored_parts
from iconoclast_tl.folding.rounding import epsilon, last_bits_moved, rounding_tolerance
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.adapter import WRAPPED, loaded_adapter
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.contrast import Split
from iconoclast_tl.prompts.prompt import Prompt
from iconoclast_tl.prompts.tokens import TokenBatch, Tokens, require_context

LOGITS: Final = 64e6
"""Bytes of logits that are held at once, or a sixteenth of the model's weights where that is more."""


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
    """Compare logits at every position of `rows` under the preview with those of what was folded, and every module.

    The adapter is reloaded from its folder by `peft`. merged: a model of the merged weights; one from `reload_merged`
    makes saving part of the proof. merged_dtype: in which they were stored. Where that is coarser than the model's, the
    noise of rounding to it is what they are judged by.
    """
    model, dtype = made.model, merged_dtype or made.model.hf.dtype
    coarser = max(dtype, model.hf.dtype, key=epsilon)
    modules = previewed_modules(edit, model, rows)
    roundings = {model.hf.dtype} if merged is None else {model.hf.dtype, coarser}
    written = [model.hf.get_submodule(one.path) for one in modules]
    largest = _largest_differences(edit, model, rows, adapter, merged, written, roundings, batch_size)

    def judged(name: str, rounded: torch.dtype) -> LogitCheck:
        return LogitCheck(largest[name], rounding_tolerance(largest[str(rounded)], rounded, largest["scale"]))

    with loaded_adapter(model, adapter) as wrapped:
        of_adapter = module_check(modules, lambda path: wrapped.get_submodule(WRAPPED + path))
    return Fidelity(
        preview_vs_adapter=judged("adapter", model.hf.dtype),
        adapter_by_module=of_adapter,
        preview_vs_merged=None if merged is None else judged("merged", coarser),
        merged_by_module=None if merged is None else module_check(modules, merged.get_submodule, coarser),
        merged_dtype=None if merged is None else str(dtype).removeprefix("torch."),
        preview_vs_base=largest["base"],
        residual_fraction=made.residual_fraction,
        n_matrices=made.n_matrices,
        n=len(rows),
    )


def _largest_differences(
    edit: Edit,
    model: Model,
    rows: Sequence[Tokens],
    adapter: Path,
    merged: Any | None,
    written: Sequence[nn.Module],
    roundings: Collection[torch.dtype],
    batch_size: int,
) -> dict[str, float]:
    """Of any logit from the preview's: `adapter`, `merged`, `base`; by the dtype's name when last bits move of what
    the modules in `written` write; and `scale`, the largest logit itself.
    """
    sites, found = hf_sites(model.hf, edit.components), dict[str, list[float]]()

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    def compare(batch: TokenBatch) -> None:
        inputs, real = model.inputs(batch), batch.attention_mask.bool()
        with preview(edit, sites):
            expected = _logits(model.hf, inputs, real)
            note("scale", float(expected.abs().max()))
            for dtype in roundings:
                with last_bits_moved(written, epsilon(dtype)):
                    note(str(dtype), _difference(expected, _logits(model.hf, inputs, real)))
        note("base", _difference(expected, _logits(model.hf, inputs, real)))
        with loaded_adapter(model, adapter) as wrapped:
            note("adapter", _difference(expected, _logits(wrapped, inputs, real)))
        if merged is not None:
            note("merged", _difference(expected, _logits(merged, inputs, real)))

    over_batches(compare, rows, model.pad_id, _rows_at_once(model, rows, batch_size))
    # Not max(): it would pass over a NaN, and a comparison that gave NaN is no agreement.
    return {name: float(torch.tensor(values).max()) for name, values in found.items()}


def _rows_at_once(model: Model, rows: Sequence[Tokens], most: int) -> int:
    """So many that their logits, some of which are held at once, are small beside the model."""
    weights = sum(parameter.nbytes for parameter in model.hf.parameters())
    of_row = 4 * max(map(len, rows)) * int(model.hf.get_output_embeddings().weight.shape[0])
    return max(1, min(most, int(max(LOGITS, weights / 16) / of_row)))


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

    over_batches(compare, rows, quantised.pad_id, _rows_at_once(full, rows, batch_size))
    largest, allowed, made = (float(torch.tensor(values).max()) for values in (differences, noise, effect))
    return LogitCheck(largest, min(allowed, made / 4))


def reload_merged(model: Model, merged: Path) -> Any:
    """The merged weights of a folder, as plain `transformers` loads them, placed as the model is.

    Tensors that equal the model's are given up for those, so that two models take little more room than one.
    """
    from transformers import AutoModelForCausalLM

    where = getattr(model.hf, "hf_device_map", None)
    if where is None or (len(set(where.values())) == 1 and not is_offloaded(model.hf)):
        reloaded = AutoModelForCausalLM.from_pretrained(str(merged), dtype=model.hf.dtype)
        reloaded = reloaded.to(model.device).eval()
        _share_equal(reloaded, model.hf)
        return reloaded
    options = placement(where, None)
    return AutoModelForCausalLM.from_pretrained(str(merged), dtype=model.hf.dtype, **options).eval()


def _share_equal(merged: nn.Module, base: nn.Module) -> None:
    held = dict(base.named_parameters())
    for name, parameter in merged.named_parameters():
        same = name in held and held[name].dtype == parameter.dtype and torch.equal(held[name], parameter)
        # A copy of the others: where all of a file is mapped into memory, one tensor of it would keep the rest.
        parameter.data = held[name].data if same else parameter.data.clone()


def _logits(hf: Any, inputs: dict[str, Tensor], real: Tensor) -> Float[Tensor, "token vocab"]:
    with torch.no_grad():
        logits: Tensor = hf(**inputs).logits
    return logits.float().cpu()[real]


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs_().max())
