"""The whole run, top to bottom: collect → directions → preview → search → fold and verify → evaluate.

Every stage reads what earlier stages left in the run folder and computes what is missing, so each can be run alone,
and a run that was stopped goes on where it was. The search sees train and val; test is asked once, at the end.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from iconoclast_tl.activations.collect import LastPosition, collect_last_position
from iconoclast_tl.activations.store import Activations, activation_key, load_activations, save_activations
from iconoclast_tl.config import Settings
from iconoclast_tl.directions.directions import Directions, load_directions, save_directions
from iconoclast_tl.directions.estimate import estimate_directions
from iconoclast_tl.directions.separation import best_point, separation
from iconoclast_tl.doctor.stream import shares_of_edits
from iconoclast_tl.edits.edit import Edit, make_edit
from iconoclast_tl.edits.hooks import preview
from iconoclast_tl.edits.profiles import uniform
from iconoclast_tl.edits.store import load_edit, save_edit
from iconoclast_tl.evaluation.comparison import Change, Compared, compare, response_rows
from iconoclast_tl.folding.adapter import loaded_adapter, save_adapter
from iconoclast_tl.folding.fold import make_fold, require_experts_at_hand
from iconoclast_tl.folding.merge_files import merge_files, plan_merge
from iconoclast_tl.folding.verification import agreement_on_quantised, reload_merged, verify
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.progress import Track, silent
from iconoclast_tl.foundation.storage import read_json, write_json, write_jsonl
from iconoclast_tl.model_cards import write_cards
from iconoclast_tl.models.hook_points import hf_sites
from iconoclast_tl.models.loading import load_model
from iconoclast_tl.models.sites import WRITERS, Component
from iconoclast_tl.models.source import base_of_adapter
from iconoclast_tl.models.stored import files_digest, skeleton, stored_folder
from iconoclast_tl.models.twin import Twin, make_twin
from iconoclast_tl.models.writers import know_writers
from iconoclast_tl.report.results import provenance, search_part
from iconoclast_tl.run_folder import RunFolder
from iconoclast_tl.search.pareto import Candidate, choose, take
from iconoclast_tl.search.search import Found, find
from iconoclast_tl.search_job import require_foldable, search_job
from iconoclast_tl.workspace import Workspace, model_folder

VERIFIED_PROMPTS = 32
"""Target and neutral test prompts, this many of each, on which a fold is compared with its preview."""
MEASURED_PROMPTS = 4
"""Of each, on which it is measured what is left in the stream."""


def run(workspace: Workspace) -> dict[str, Any]:
    """Everything, in order; returns the contents of results.json."""
    require_foldable(workspace)
    require_experts_at_hand(workspace.model.hf, {site.component for site in workspace.sites})
    activations = collect(workspace)
    directions = estimate(workspace, activations)
    preview_default(workspace, directions, activations)
    edit = search(workspace, directions, activations)
    fold(workspace, edit)
    return evaluate(workspace, edit)


# 1. Collect ---------------------------------------------------------------------------------------------------------


def collect(workspace: Workspace) -> Activations:
    """Last-token residuals of train and val prompts, and the writers' neutral means; kept in the run folder."""
    key = _activation_key(workspace)
    found = load_activations(workspace.folder.activations, key)
    if found is not None:
        return found
    with workspace.timed("collect"):
        twin = _twin(workspace)
        contrast, parts = workspace.contrast, {}
        for side, splits in (("target", contrast.target), ("neutral", contrast.neutral)):
            for split, prompts in (("train", splits.train), ("val", splits.val)):
                parts[side, split] = collect_last_position(
                    workspace.model,
                    twin,
                    workspace.questions(prompts).rows,
                    workspace.rows_at_once(workspace.settings.activations.batch_size),
                    workspace.track,
                    f"collect {side} {split}",
                )
        activations = _activations(parts)
        save_activations(workspace.folder.activations, activations, key)
    return activations


def _twin(workspace: Workspace) -> Twin | None:
    """The TransformerLens twin, where it was asked for and computes what the model computes."""
    if workspace.settings.activations.through == "modules":
        return None
    twin = make_twin(workspace.model)
    if isinstance(twin, Twin):
        return twin
    workspace.say(f"{twin.reason}; collecting through hooks on the Hugging Face modules instead")
    return None


def _activations(parts: Mapping[tuple[str, str], LastPosition]) -> Activations:
    return Activations(
        parts["target", "train"].residuals,
        parts["neutral", "train"].residuals,
        parts["target", "val"].residuals,
        parts["neutral", "val"].residuals,
        {component: stats.mean for component, stats in parts["neutral", "train"].writes.items()},
    )


def _activation_key(workspace: Workspace) -> str:
    return activation_key(
        model=workspace.model.fingerprint,
        dtype=workspace.model.dtype,
        quantization=workspace.settings.model.quantization,
        tokens=workspace.tokens_digest,
    )


# 2. Directions ------------------------------------------------------------------------------------------------------


def estimate(workspace: Workspace, activations: Activations) -> Directions:
    """One direction per residual point from the train prompts, with its separation on val; or those of a named file."""
    config = workspace.settings.directions
    model = workspace.model
    if config.file is not None:
        directions = load_directions(Path(config.file), model.n_layers, model.d_model)
    else:
        vectors = estimate_directions(activations.target_train, activations.neutral_train, config)
        directions = Directions(
            vectors,
            separation(vectors, activations.target_val, activations.neutral_val),
            {
                "model": workspace.settings.model.name,
                "fingerprint": model.fingerprint,
                "prompts": workspace.contrast.digests(),
                "directions": config.model_dump(mode="json"),
            },
        )
    if not bool(directions.vectors.any()):
        raise UserError(
            "target and neutral prompts hold the same activations everywhere",
            want="prompts that the model tells apart at their last token",
        )
    known = (workspace.folder.read_manifest() or {}).get("directions")
    if known not in (None, directions.digest()) and workspace.folder.is_searched:
        raise UserError(
            f"the search in {workspace.folder.path} was made with other directions",
            got=f"a changed {config.file}" if config.file else "directions that came out differently",
            mend="restore them or pass another --out",
        )
    save_directions(workspace.folder.directions, directions)
    workspace.remember(directions=directions.digest())
    return directions


# 3. Preview ---------------------------------------------------------------------------------------------------------


def preview_default(workspace: Workspace, directions: Directions, activations: Activations) -> Compared | None:
    """The simplest ablation: the best separating point's direction, λ = 1 in all layers; None where it is there."""
    point = best_point(directions)
    edit = uniform_edit(workspace, directions, activations, point, 1.0, range(directions.n_layers))
    file = workspace.folder.preview
    if file.is_file() and read_json(file).get("edit") == edit.digest():
        return None
    with workspace.timed("preview"):
        shown = preview_edit(workspace, edit)
        about = {"split": "val", "point": point, "strength": 1.0, "edit": edit.digest()}
        write_json(file, {**about, **shown.to_json()})
    before, after = shown.measured["base"], shown.measured["edited"]
    workspace.say(
        f"preview on val, direction of point {point}, λ = 1 everywhere: behaviour {before.behaviour_rate.value:.0%} → "
        f"{after.behaviour_rate.value:.0%}, spill {after.spill_rate.value:.0%}, KL {after.divergence.sequence:.4f}"
    )
    return shown


def uniform_edit(
    workspace: Workspace,
    directions: Directions,
    activations: Activations,
    point: float,
    strength: float,
    layers: range | list[int],
) -> Edit:
    """One residual point's direction with the same strength at both writers of `layers`, exact (no row
    normalisation).
    """
    n_layers = directions.n_layers
    outside = [layer for layer in layers if not 0 <= layer < n_layers]
    if outside:
        raise UserError(
            f"layer {outside[0]} is outside 0..{n_layers - 1}",
            got=f"a model with {n_layers} layers",
            mend=f"pass --layers 0-{n_layers - 1}",
        )
    config = workspace.settings.edit.model_copy(update={"row_normalization": "none"})
    strengths: dict[Component, Tensor] = {c: uniform(strength, list(layers), n_layers) for c in WRITERS}
    vectors = directions.at(point).expand(1, n_layers, -1)
    return make_edit(
        vectors, strengths, config, activations.neutral_means, workspace.gains, workspace.experts, workspace.parts
    )


def preview_edit(workspace: Workspace, edit: Edit) -> Compared:
    """Ask the val prompts with the edit's hooks off and on."""
    return compare(workspace.val, lambda: preview(edit, workspace.sites), workspace.judge)


# 4. Search ----------------------------------------------------------------------------------------------------------


def search(workspace: Workspace, directions: Directions, activations: Activations) -> Edit:
    """Bring the search to its end, choose by rule, and keep the edit."""
    config = workspace.settings.search
    require_foldable(workspace)
    job = search_job(workspace, directions, activations)
    with workspace.timed("search"):
        found = find(job)
    if config.take is None:
        chosen = choose(found.candidates, config.choose, config.max_rate, config.kl, config.goal)
    else:
        chosen = take(found.candidates, config.take)
    edit = job.source.build(chosen.parameters)
    _keep(workspace, edit, chosen, found)
    return edit


def _keep(workspace: Workspace, edit: Edit, chosen: Candidate, found: Found) -> None:
    """Write the edit and what results.json says of the search; what was made of another edit goes first."""
    folder = workspace.folder
    stale: dict[str, Any] = {}
    if folder.read_results().get("chosen", {}).get("edit") != edit.digest():
        stale = {"base": None, "edited": None, "evaluated": None, "fidelity": None, "merged": None}
        for place in (folder.adapter, folder.merged):
            shutil.rmtree(place, ignore_errors=True)
    save_edit(folder.path, edit, provenance(chosen, workspace.settings.search))
    folder.update_results(**_about(workspace), **search_part(edit, chosen, found, workspace.settings.search), **stale)


def chosen_edit(workspace: Workspace) -> Edit:
    """The edit that an earlier search left in the run folder."""
    edit, _ = load_edit(workspace.folder.edit, workspace.model.n_layers, workspace.model.d_model)
    return edit


# 5. Fold and verify -------------------------------------------------------------------------------------------------


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


# 6. Evaluate --------------------------------------------------------------------------------------------------------


def evaluate(workspace: Workspace, edit: Edit) -> dict[str, Any]:
    """Ask the test prompts, once, without and with the edit; write results, responses and model cards."""
    what = {"edit": edit.digest()}
    results = workspace.folder.read_results()
    if results.get("evaluated") != what:
        results = _evaluate(workspace, what, lambda: preview(edit, workspace.sites))
    write_cards(workspace.folder, workspace.settings)
    return results


def evaluate_model(workspace: Workspace, adapter: Path | None) -> dict[str, Any]:
    """Ask the test prompts of a model by itself, or of a model without and with a PEFT adapter."""
    folder = workspace.folder
    if folder.edit.is_file() or folder.is_searched:
        raise UserError(
            f"{folder.path} holds a run of its own", got="something else to evaluate", mend="pass another --out"
        )
    if adapter is None:
        return _evaluate(workspace, {"model": workspace.settings.model.name}, None)
    with loaded_adapter(workspace.model, adapter):  # whether it loads at all is asked before anything else
        pass
    return _evaluate(workspace, {"adapter": str(adapter)}, lambda: loaded_adapter(workspace.model, adapter))


def _evaluate(workspace: Workspace, what: Mapping[str, str], change: Change | None) -> dict[str, Any]:
    folder = workspace.folder
    with workspace.timed("evaluate"):
        compared = compare(workspace.asked("test"), change, workspace.judge)
        write_jsonl(folder.responses, response_rows(compared, workspace.settings.evaluation, workspace.judge))
    timing = (folder.read_manifest() or {}).get("timing", {})
    measured: dict[str, Any] = {"edited": None, **compared.to_json()}
    return folder.update_results(**_about(workspace), evaluated=dict(what), **measured, timing=timing)


def _about(workspace: Workspace) -> dict[str, Any]:
    contrast = workspace.contrast
    splits = contrast.counts()
    if contrast.borderline:
        splits["test"]["borderline"] = len(contrast.borderline)
    name, behaviour = workspace.settings.model.name, workspace.settings.behaviour
    return {"model": name, "behaviour": behaviour, "splits": splits}
