"""The whole run, top to bottom: collect → directions → preview → search → fold and verify → evaluate.

Every stage reads what earlier stages left in the run folder and computes what is missing, so each can be run alone,
and a run that was stopped goes on where it was. The search sees train and val; test is asked once, at the end.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from iconoclast_tl.activations.collect import LastPosition, collect_last_position
from iconoclast_tl.activations.store import CONTENT, Activations, activation_key, load_activations, save_activations
from iconoclast_tl.directions.directions import Directions, load_directions, save_directions
from iconoclast_tl.directions.estimate import estimate_directions
from iconoclast_tl.directions.separation import best_point, separation
from iconoclast_tl.edits.edit import Edit, make_edit
from iconoclast_tl.edits.hooks import preview
from iconoclast_tl.edits.profiles import uniform
from iconoclast_tl.edits.store import load_edit, save_edit
from iconoclast_tl.evaluation.comparison import Change, Compared, compare, response_rows
from iconoclast_tl.export import fold
from iconoclast_tl.folding.adapter import loaded_adapter
from iconoclast_tl.folding.fold import require_experts_at_hand
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.storage import read_json, write_json, write_jsonl
from iconoclast_tl.model_cards import write_cards
from iconoclast_tl.models.sites import WRITERS, Component
from iconoclast_tl.models.twin import Twin, make_twin
from iconoclast_tl.report.results import provenance, search_part
from iconoclast_tl.search.pareto import Candidate, choose, take
from iconoclast_tl.search.search import Found, find
from iconoclast_tl.search_job import require_foldable, search_job
from iconoclast_tl.workspace import Workspace


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
        {component: stats.mean for component, stats in parts["neutral", "train"].reads.items()},
    )


def _activation_key(workspace: Workspace) -> str:
    return activation_key(
        model=workspace.model.fingerprint,
        dtype=workspace.model.dtype,
        quantization=workspace.settings.model.quantization,
        tokens=workspace.tokens_digest,
        kept=CONTENT,
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
    return make_edit(vectors, strengths, config, workspace.ground(activations))


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


# 5. Evaluate (folding and its proof: `iconoclast_tl.export`) ---------------------------------------------------------


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
