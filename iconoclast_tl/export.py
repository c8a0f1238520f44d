"""What a run exports: adapter and merged weights of its chosen edit, and the proof that they are its preview."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

from iconoclast_tl.config import Settings
from iconoclast_tl.doctor.stream import shares_of_edits
from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.edits.store import load_edit
from iconoclast_tl.folding.adapter import save_adapter
from iconoclast_tl.folding.fold import make_fold
from iconoclast_tl.folding.merge_files import merge_files, plan_merge
from iconoclast_tl.folding.verification import agreement_on_quantised, reload_merged, verify
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.progress import Track, silent
from iconoclast_tl.model_cards import write_cards
from iconoclast_tl.models.hook_points import hf_sites
from iconoclast_tl.models.loading import load_model
from iconoclast_tl.models.source import base_of_adapter
from iconoclast_tl.models.stored import files_digest, skeleton, stored_folder
from iconoclast_tl.models.writers import know_writers
from iconoclast_tl.run_folder import RunFolder
from iconoclast_tl.workspace import Workspace, model_folder

VERIFIED_PROMPTS = 32
"""Target and neutral test prompts, this many of each, on which a fold is compared with its preview."""
MEASURED_PROMPTS = 4
"""Of each, on which it is measured what is left in the stream."""


def fold(workspace: Workspace, edit: Edit) -> None:
    """Write the adapter (and merged weights), reload both, and compare their logits with the preview's.

    Raises `RuntimeError` where they differ by more than rounding: that would be a defect, and no result is kept of it.
    """
    folder, merge = workspace.folder, workspace.settings.fold.merge
    if _is_folded(folder, edit, merge):
        return
    with workspace.timed("fold"):
        model = _full_precision(workspace).model
        folded = make_fold(edit, model)
        source = stored_folder(model.name, workspace.settings.model.revision) if merge else None
        plan = plan_merge(edit, model.hf, source) if source else None
        save_adapter(folded, model, folder.adapter)
        if plan is not None:
            merge_files(plan, folder.merged, workspace.track)
            folder.update_results(merged={"edit": edit.digest()})
        elif (folder.read_results().get("merged") or {}).get("edit") != edit.digest():
            shutil.rmtree(folder.merged, ignore_errors=True)
        target, neutral = workspace.contrast.target.test, workspace.contrast.neutral.test
        rows = [workspace.chat.encode(prompt) for side in (target, neutral) for prompt in side[:VERIFIED_PROMPTS]]
        reloaded, dtype = (reload_merged(model, folder.merged), plan.dtype) if plan else (None, None)
        fidelity = verify(edit, folded, model, rows, folder.adapter, reloaded, merged_dtype=dtype)
        found: dict[str, Any] = {"edit": edit.digest(), **fidelity.to_json(), "on_quantised": None}
        if model is not workspace.model:
            on_quantised = agreement_on_quantised(edit, workspace.model, model, rows, folder.adapter)
            found |= {"on_quantised": on_quantised.to_json(), "ok": fidelity.ok and on_quantised.ok}
    if not found["ok"]:
        raise RuntimeError(f"the fold is not its preview: {found}")
    # Where a post-norm follows, what is left in the matrices is not what is left in the stream.
    sites = hf_sites(model.hf, edit.components)
    some = [*rows[:MEASURED_PROMPTS], *rows[-MEASURED_PROMPTS:]]
    left = shares_of_edits(model, sites, [edit], some)[0].tolist() if workspace.gains else None
    folder.update_results(fidelity={**found, "stream_fraction": left})
    write_cards(folder, workspace.settings)


def merge(folder: RunFolder, settings: Settings, track: Track = silent) -> dict[str, Any]:
    """The chosen edit of a run as plain weights, file by file: the model is not loaded, and nothing is compared.

    Returns what was done. Raises `UserError` for a folder without a search's edit, for a model whose files are not
    those of the run, and for what `plan_merge` refuses.
    """
    if folder.read_manifest() is None:
        raise UserError(f"there is no run in {folder.path}", mend="run `search` first")
    with folder.locked():
        about = (folder.read_manifest() or {})["model"]
        edit, _ = load_edit(folder.edit, about["n_layers"], about["d_model"])
        name = str(model_folder(settings) or settings.model.name)
        name = base_of_adapter(name) or name
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
        folder.update_results(merged={"edit": edit.digest()})
        write_cards(folder, settings)
    return {
        "merged": str(folder.merged),
        "edit": edit.digest(),
        "n_matrices": len(plan.parts),
        "residual_fraction": left,
    }


def _is_folded(folder: RunFolder, edit: Edit, merge: bool) -> bool:
    done = folder.read_results().get("fidelity") or {}
    there = folder.adapter.is_dir() and done.get("edit") == edit.digest()
    return there and (not merge or (folder.merged.is_dir() and done["preview_vs_merged"] is not None))


def _full_precision(workspace: Workspace) -> Workspace:
    """The same workspace over unquantised weights, which a fold needs."""
    if workspace.model.quantization == "none":
        return workspace
    config = workspace.settings.model.model_copy(update={"quantization": "none"})
    place = model_folder(workspace.settings)
    workspace.say("folding on the full-precision weights, loaded beside the quantised ones")
    return replace(workspace, model=load_model(config, str(place) if place else None))
