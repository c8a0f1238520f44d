"""The whole run, top to bottom: collect → directions → preview → search → fold and verify → evaluate.

Every stage reads what earlier stages left in the run folder and computes what is missing, so each can be run alone,
and a run that was stopped goes on where it was. The search sees train and val; test is asked once, at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iconoclast_tl.activations.store import Activations
from iconoclast_tl.direction_job import estimate
from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.directions.separation import best_point
from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.edits.hooks import preview
from iconoclast_tl.edits.store import save_edit
from iconoclast_tl.evaluation.comparison import Change, Compared, compare, response_rows
from iconoclast_tl.export import fold
from iconoclast_tl.folding.adapter import loaded_adapter
from iconoclast_tl.folding.fold import require_experts_at_hand
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.storage import read_json, write_json, write_jsonl
from iconoclast_tl.model_cards import write_cards
from iconoclast_tl.prepare import collect, drop_of_other_edit, uniform_edit
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


# 1 and 2, collect and directions: `prepare`, `direction_job` ----------------------------------------------------------


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
    stale = drop_of_other_edit(folder, edit)
    save_edit(folder.path, edit, provenance(chosen, workspace.settings.search))
    folder.update_results(**_about(workspace), **search_part(edit, chosen, found, workspace.settings.search), **stale)


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
