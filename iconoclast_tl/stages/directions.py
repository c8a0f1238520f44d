"""What a workspace asks of its activations: directions, chosen among positions and points, refined, and kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from iconoclast_tl.activations.store import Activations, Residuals
from iconoclast_tl.directions import diagnostics
from iconoclast_tl.directions.config import SHOWN_ONLY, DirectionConfig
from iconoclast_tl.directions.diagnostics import Sides
from iconoclast_tl.directions.directions import Directions, load_directions, save_directions
from iconoclast_tl.directions.estimate import Estimated, estimate_directions, nothing_differs, with_separation
from iconoclast_tl.directions.estimators.registry import ESTIMATORS
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.storage import as_json, read_json, write_json, write_text
from iconoclast_tl.report.pages.directions import DirectionsReport
from iconoclast_tl.selection.choose import ByPosition, behaviour_tokens, choose
from iconoclast_tl.selection.refinement import refine
from iconoclast_tl.selection.rules import Selection
from iconoclast_tl.stages.workspace import Workspace

CONTENT = 1
"""Counts what an estimate is: one of an earlier content is made again."""


def estimated(workspace: Workspace, activations: Activations) -> Directions:
    """Directions of every residual point from the train prompts at one position, with their separation on val.

    Position and best point by `directions.selection`, further directions by `directions.refine`; or those of a named
    file. Kept in the run folder; what was selected among, with every candidate's scores, in selection.json.
    """
    config = workspace.settings.directions
    selection = None
    if config.file is not None:
        directions = _from_file(workspace)
    else:
        directions, selection = _estimated(workspace, activations)
    if not bool(directions.vectors.any()):
        raise nothing_differs(config)
    known = (workspace.folder.read_manifest() or {}).get("directions")
    if known not in (None, directions.digest()) and workspace.folder.is_searched:
        raise UserError(
            f"the search in {workspace.folder.path} was made with other directions",
            got=f"a changed {config.file}" if config.file else "directions that came out differently",
            mend="restore them or pass another --out",
        )
    for line in directions.provenance.get("notes", ()):
        workspace.say(line)
    if selection is not None:
        write_json(workspace.folder.selection, selection.to_json())
    save_directions(workspace.folder.directions, directions)
    workspace.remember(directions=directions.digest())
    return directions


def diagnosed(workspace: Workspace, activations: Activations, directions: Directions) -> DirectionsReport:
    """What there is to know of the directions without asking the model; directions.html in the run folder."""
    config = workspace.settings.directions
    sizes = len(activations.target_train), len(activations.neutral_train)
    few = [name for name in config.compare if min(sizes) < ESTIMATORS[name].least]
    if few:
        workspace.say(f"not compared with {', '.join(few)}, which need more train prompts than {min(sizes)} a side")
    config = config.model_copy(update={"compare": tuple(name for name in config.compare if name not in few)})
    named = [config.model_copy(update={"estimator": name}) for name in (config.estimator, *config.compare)]
    residuals = activations.at_or_last(directions.position)
    sides = Sides(residuals.target_train, residuals.neutral_train, residuals.target_val, residuals.neutral_val)
    shown = labels_for(workspace, *named)
    found = diagnostics.diagnose(directions, sides, config, shown, workspace.track)
    selection = None if config.file else Selection.from_json(read_json(workspace.folder.selection))
    report = DirectionsReport(found, selection)
    write_text(workspace.folder.directions_page, report.page())
    return report


def shown_on_train(workspace: Workspace) -> Bool[Tensor, "rows"]:
    """Whether the response to each train prompt shows the behaviour, target prompts first; kept in labels.json."""
    evaluation = workspace.settings.evaluation
    about = {
        "tokens": workspace.tokens_digest,
        "model": workspace.model.fingerprint,
        "detector": as_json(workspace.detector.about()),
        "budget": evaluation.max_new_tokens,
    }
    file = workspace.folder.labels
    kept = read_json(file) if file.is_file() else {}
    if kept.get("about") != about:
        with workspace.timed("label"):
            shows = workspace.asked("train").shows
        kept = {"about": about, "target": shows["target"], "neutral": shows["neutral"]}
        write_json(file, kept)
    return torch.tensor([*kept["target"], *kept["neutral"]])


def labels_for(workspace: Workspace, *configs: DirectionConfig) -> Bool[Tensor, "rows"] | None:
    """`shown_on_train`, where an estimator goes by what the model did."""
    needed = any(ESTIMATORS[config.estimator].labels for config in configs)
    return shown_on_train(workspace) if needed else None


def _from_file(workspace: Workspace) -> Directions:
    config, model = workspace.settings.directions, workspace.model
    directions = load_directions(Path(str(config.file)), model.n_layers, model.d_model)
    if directions.provenance.get("fingerprint", model.fingerprint) != model.fingerprint:
        other = directions.provenance.get("model", "another model")
        workspace.say(f"warning: the directions in {config.file} were estimated on other weights ({other})")
    return directions


def _estimated(workspace: Workspace, activations: Activations) -> tuple[Directions, Selection | None]:
    """With what they were chosen among; None where the run folder's own are the same."""
    config, model = workspace.settings.directions, workspace.model
    about: dict[str, Any] = {
        "content": CONTENT,
        "model": workspace.settings.model.name,
        "fingerprint": model.fingerprint,
        "prompts": workspace.contrast.digests(),
        "directions": config.model_dump(mode="json", exclude=SHOWN_ONLY),
        "positions": list(activations.positions),
    }
    if code := ESTIMATORS[config.estimator].digest:  # of a user's own: another code may find other directions
        about["code"] = code
    kept = _kept(workspace, about)
    if kept is not None:
        return kept, None
    shown = labels_for(workspace, config)
    positions = activations.positions if config.position is None else (config.position,)
    found = {position: _at(workspace, activations.at(position), shown) for position in positions}
    if not any(bool(at.vectors.any()) for at in found.values()):
        raise nothing_differs(config)
    selection = _selected(workspace, activations, found)
    position = selection.chosen.position
    estimated, residuals = found[position], activations.at(position)
    about["selection"] = {"rule": selection.rule, "position": position, "point": selection.chosen.point}
    directions = with_separation(estimated, residuals, config, about)
    return _refined(workspace, directions, shown) if config.refine else directions, selection


def _selected(workspace: Workspace, activations: Activations, found: ByPosition) -> Selection:
    """Chosen by `directions.selection`; the model is asked where the rule needs it."""
    config = workspace.settings.directions.selection
    if config.rule == "separation":
        selection = choose(activations, found, config)
    else:
        base, tokens = workspace.asked("val", config.prompts), _behaviour_tokens(workspace)
        selection = choose(activations, found, config, base, tokens)
    if config.rule != "separation" or len(found) > 1:
        workspace.say(f"{config.rule} chose {selection.chosen} of {len(selection.table)} candidates")
    return selection


def _refined(workspace: Workspace, directions: Directions, shown: Bool[Tensor, "rows"] | None) -> Directions:
    """With at most `directions.refine` further ones."""
    settings = workspace.settings
    return refine(
        directions,
        workspace.asked("train"),
        workspace.asked("val", settings.directions.selection.prompts),
        _behaviour_tokens(workspace),
        settings.directions,
        temperature=settings.scores.temperature,
        shown=shown,
        batch_size=workspace.rows_at_once(settings.activations.batch_size),
        say=workspace.say,
    )


def _behaviour_tokens(workspace: Workspace) -> Tensor:
    settings = workspace.settings
    base = workspace.asked("train", settings.scores.prompts)
    return behaviour_tokens(base, settings.scores, settings.directions.selection.rule)


def _kept(workspace: Workspace, about: Mapping[str, Any]) -> Directions | None:
    """The run folder's directions, where they were estimated from the same in the same way, and nothing is missing."""
    folder, model = workspace.folder, workspace.model
    if not (folder.directions.is_file() and folder.selection.is_file()):
        return None
    found = load_directions(folder.directions, model.n_layers, model.d_model)
    whole = found.digest() == (folder.read_manifest() or {}).get("directions")
    same = all(found.provenance.get(name) == value for name, value in about.items())
    chosen, among = found.provenance.get("selection", {}), read_json(folder.selection)
    return found if whole and same and all(among.get(name) == value for name, value in chosen.items()) else None


def _at(workspace: Workspace, residuals: Residuals, shown: Tensor | None) -> Estimated:
    return estimate_directions(
        residuals.target_train, residuals.neutral_train, workspace.settings.directions, shown, workspace.track
    )
