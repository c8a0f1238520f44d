"""Fold a run's chosen edit into an adapter and merged weights, and verify that they equal its preview."""

from __future__ import annotations

import shutil
from typing import Any

from iconoclast_tl.architecture.writers import know_writers
from iconoclast_tl.edits.completeness import shares_of_edits
from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.edits.store import load_edit
from iconoclast_tl.folding.fold import Fold, fold
from iconoclast_tl.folding.merge_files import merge_files, plan_merge
from iconoclast_tl.folding.merge_plan import MemoryMerge, StoredMerge, planned_merge
from iconoclast_tl.folding.verification import agreement_of_fold, agreement_on_quantised, reload_merged
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.progress import Track, silent
from iconoclast_tl.models.load import load_model
from iconoclast_tl.models.model import Model
from iconoclast_tl.models.source import base_of_adapter, is_gguf
from iconoclast_tl.models.stored import files_digest, skeleton, stored_folder
from iconoclast_tl.prompts.tokens import Tokens
from iconoclast_tl.stages.cards import write_cards
from iconoclast_tl.stages.own_prompts import model_folder
from iconoclast_tl.stages.results import publish_again
from iconoclast_tl.stages.run_folder import RunFolder
from iconoclast_tl.stages.settings import Settings
from iconoclast_tl.stages.workspace import Workspace

VERIFIED_PROMPTS = 32
"""Test prompts of each side on which a fold is compared with its preview."""
MEASURED_PROMPTS = 4
"""Test prompts of each side on which the share of the direction left in the stream is measured."""


def folded(workspace: Workspace, edit: Edit) -> dict[str, Any]:
    """Write the adapter (and merged weights), reload both, and compare their logits with the preview's.

    Returns how far they are from it: `fidelity` of the results. Raises `RuntimeError` where they differ by more than
    rounding explains: that would be a defect, and no result of it is kept.
    """
    folder = workspace.folder
    if (done := _earlier_fold(folder, edit, workspace.settings.fold.merge)) is not None:
        return done
    with workspace.timed("fold"):
        model = _full_precision(workspace)
        made = fold(edit, model)
        plan = _merge_plan(workspace, made)  # what cannot be merged is told before anything is written
        made.save(folder.adapter)
        _merge(workspace, plan, edit)
        rows = _compared_rows(workspace)
        found = {"edit": edit.digest(), **_agreement(workspace, edit, made, plan, rows)}
    if not found["ok"]:
        raise RuntimeError(f"the fold is not its preview: {found}")
    some = [*rows[:MEASURED_PROMPTS], *rows[-MEASURED_PROMPTS:]]
    found["stream_fraction"] = _left_in_stream(model, edit, some) if model.gains else None
    folder.record(fidelity=found)
    publish_again(folder)
    write_cards(folder, workspace.settings)
    return found


def merged(folder: RunFolder, settings: Settings, track: Track = silent) -> dict[str, Any]:
    """Write the chosen edit of a run as plain weights, file by file; the model is not loaded and nothing is verified.

    Returns what was done. Raises `UserError` for a folder without a search's edit, for a model whose files are not
    those of the run, for a GGUF file, and for what `plan_merge` refuses.
    """
    if folder.read_manifest() is None:
        raise UserError(f"there is no run in {folder.path}", mend="run `search` first")
    with folder.locked():
        about = (folder.read_manifest() or {})["model"]
        edit, _ = load_edit(folder.edit, about["n_layers"], about["d_model"])
        name = str(model_folder(settings) or settings.model.name)
        name = base_of_adapter(name) or name
        if is_gguf(name):
            raise UserError(
                f"{name} cannot be edited file by file",
                got="a GGUF file, whose weights are quantised together in blocks",
                want="safetensors",
                mend=f"use `fold --merge --out {folder.path}`, which loads the model and writes dequantised weights",
            )
        model = settings.model.model_copy(update={"revision": about.get("commit") or settings.model.revision})
        source = stored_folder(name, model.revision)
        if about.get("files") not in (None, files_digest(source)):
            raise UserError(
                f"the files of {name} are not those that the run was made with",
                got="other weights or another config.json",
                mend="restore them, or search again into another --out",
            )
        hf = skeleton(name, model)
        know_writers(hf, about.get("writers", {}))
        plan = plan_merge(edit, hf, source)
        left = merge_files(plan, folder.merged, track)
        folder.record(merged={"edit": edit.digest()})
        publish_again(folder)
        write_cards(folder, settings)
    return {
        "merged": str(folder.merged),
        "edit": edit.digest(),
        "n_matrices": len(plan.parts),
        "residual_fraction": left,
    }


def _earlier_fold(folder: RunFolder, edit: Edit, merge: bool) -> dict[str, Any] | None:
    """What an earlier fold of this edit found; None where there was none, or where merged weights are missing."""
    done: dict[str, Any] = folder.read_state().get("fidelity") or {}
    if not folder.adapter.is_dir() or done.get("edit") != edit.digest():
        return None
    return done if not merge or (folder.merged.is_dir() and done["preview_vs_merged"] is not None) else None


def _full_precision(workspace: Workspace) -> Model:
    """The model, or the same over unquantised weights, which a fold needs."""
    model = workspace.model
    if model.quantization == "none":
        return model
    config = workspace.settings.model.model_copy(update={"quantization": "none"})
    workspace.say("folding on the full-precision weights, loaded beside the quantised ones")
    return load_model(config, system=model.system, raw_prompts=model.raw_prompts, attention_only=model.attention_only)


def _merge_plan(workspace: Workspace, made: Fold) -> MemoryMerge | StoredMerge | None:
    asked = workspace.settings.fold.merge
    return planned_merge(made, workspace.settings.model.revision) if asked else None


def _merge(workspace: Workspace, plan: MemoryMerge | StoredMerge | None, edit: Edit) -> None:
    """Write merged/; where none is asked for, remove one of another edit."""
    folder = workspace.folder
    if plan is not None:
        plan.write(folder.merged, workspace.track)
        folder.record(merged={"edit": edit.digest()})
    elif (folder.read_state().get("merged") or {}).get("edit") != edit.digest():
        shutil.rmtree(folder.merged, ignore_errors=True)


def _compared_rows(workspace: Workspace) -> list[Tokens]:
    test, chat = workspace.contrast.test, workspace.model.chat
    return [chat.encode(prompt) for side in (test.target, test.neutral) for prompt in side[:VERIFIED_PROMPTS]]


def _agreement(
    workspace: Workspace, edit: Edit, made: Fold, plan: MemoryMerge | StoredMerge | None, rows: list[Tokens]
) -> dict[str, Any]:
    """What was written against the preview, also on the quantised weights where the run is on those."""
    folder, model = workspace.folder, made.model
    merged_weights, dtype = (reload_merged(model, folder.merged), plan.dtype) if plan else (None, None)
    fidelity = agreement_of_fold(edit, made, rows, folder.adapter, merged_weights, merged_dtype=dtype)
    found = {**fidelity.to_json(), "on_quantised": None}
    if model is not workspace.model:
        on_quantised = agreement_on_quantised(edit, workspace.model, model, rows, folder.adapter)
        found |= {"on_quantised": on_quantised.to_json(), "ok": fidelity.ok and on_quantised.ok}
    return found


def _left_in_stream(model: Model, edit: Edit, rows: list[Tokens]) -> list[float]:
    """Share of the directions left in the stream: where a post-norm follows, not what is left in the matrices."""
    shares: list[float] = shares_of_edits(model, [edit], rows)[0].tolist()
    return shares
