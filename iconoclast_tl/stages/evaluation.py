"""Evaluate a run's edit, a model by itself, or a model with an adapter, on the test prompts; resumable."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iconoclast_tl.detectors.detector import UNLABELLED
from iconoclast_tl.detectors.registry import detector_names, make_detector
from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.edits.hooks import preview
from iconoclast_tl.evaluation.base_and_edited import BaseAndEdited, ChangedModel, ask_base_and_edited
from iconoclast_tl.evaluation.transcript import Transcript, read_transcript, write_transcript
from iconoclast_tl.execution.memory import release
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.storage import as_json
from iconoclast_tl.models.adapter import loaded_adapter
from iconoclast_tl.stages.cards import write_cards
from iconoclast_tl.stages.results import OF_AN_EVALUATION, publish, withdraw
from iconoclast_tl.stages.scoring import Scoring, scored, with_prompts
from iconoclast_tl.stages.side_effects import (
    all_cross_entropies,
    corpora_asked,
    harness_tasks,
    missing_corpora,
    tasks_asked,
)
from iconoclast_tl.stages.workspace import Workspace, about


def evaluated(workspace: Workspace, edit: Edit) -> dict[str, Any]:
    """Ask the test prompts without and with the edit; write results, responses and model cards.

    Where a detector's model does not fit beside the evaluated one, that is taken out of memory, with a note to the
    user; the workspace's model cannot be used after that.
    """
    results = _evaluate(workspace, {"edit": edit.digest()}, lambda: preview(edit, workspace.sites))
    write_cards(workspace.folder, workspace.settings)
    return results


def evaluated_model(workspace: Workspace, adapter: Path | None) -> dict[str, Any]:
    """Ask the test prompts of a model by itself, or of a model without and with a PEFT adapter; as `evaluated`."""
    folder = workspace.folder
    if folder.edit.is_file() or folder.is_searched:
        raise UserError(
            f"{folder.path} holds a run of its own", got="something else to evaluate", mend="pass another --out"
        )
    if adapter is None:
        return _evaluate(workspace, {"model": workspace.settings.model.name}, None)
    with loaded_adapter(workspace.model, adapter):  # a folder that holds none is refused before anything is generated
        pass
    what = {"adapter": str(adapter), "files": _digest(adapter)}
    return _evaluate(workspace, what, lambda: loaded_adapter(workspace.model, adapter))


def _evaluate(workspace: Workspace, what: Mapping[str, str], change: ChangedModel | None) -> dict[str, Any]:
    """Ask, measure, score and publish. Responses of an earlier sitting are kept: only what is missing is computed."""
    folder, config = workspace.folder, workspace.settings.evaluation
    done, asked, rows = folder.read_state(), _asked(workspace), _kept(workspace, what)
    if rows is not None and done.get("asked") == asked and not _is_any_unlabelled(done):
        return publish(folder)  # an earlier sitting may have ended before that
    with workspace.timed("evaluate"):
        base, corpora = workspace.asked("test"), missing_corpora(workspace)
        if rows is None:
            compared = ask_base_and_edited(base, change, workspace.truth)
            rows = compared.transcript()
            withdraw(folder)
            folder.record(evaluated=None)  # should the process end here, the old measures stand for no responses
            write_transcript(folder.responses, rows, config.detector, config.keep_prompts)
            folder.record(**{**about(workspace), **_fresh(compared), "evaluated": dict(what)})
        folder.record(cross_entropy=all_cross_entropies(workspace, base, change, corpora))
        folder.record(tasks=harness_tasks(workspace, base, change))
        workspace.detector.close()  # `scored` makes its own, once it knows that there is room
        job = Scoring(folder, config, workspace.track, workspace.say, lambda: release(workspace.model.hf))
        scored(job, rows)
    manifest = folder.read_manifest() or {}
    folder.record(asked=asked, timing=manifest.get("timing", {}), token_passes=manifest.get("token_passes", {}))
    return publish(folder)


def _asked(workspace: Workspace) -> dict[str, Any]:
    """The settings on which the numbers of an evaluation depend, apart from the edit, adapter or model."""
    config = workspace.settings.evaluation
    about = {}
    for name in detector_names(config):
        detector = make_detector(config, name)
        about[name] = detector.about()
        detector.close()
    other = config.model_dump(mode="json", include={"budgets", "keep_prompts"})
    corpora, tasks = corpora_asked(config), tasks_asked(workspace.settings.harness)
    return dict(as_json({"detectors": about, **other, "corpora": corpora, "tasks": tasks}))


def _is_any_unlabelled(results: Mapping[str, Any]) -> bool:
    models = [model for model in ("base", "edited") if results.get(model)]
    found = [one[model] for one in results["detectors"].values() for model in models]
    return any(counts[UNLABELLED] for sets in found for counts in sets.values())


def _kept(workspace: Workspace, what: Mapping[str, str]) -> Transcript | None:
    """The responses that an earlier sitting left; None where there are none, or not all."""
    contrast, folder = workspace.contrast, workspace.folder
    if folder.read_state().get("evaluated") != what or not folder.responses.is_file():
        return None
    asked = (*contrast.test.target, *contrast.test.neutral, *contrast.test.borderline)
    try:
        rows = read_transcript(folder.responses)
    except UserError as error:
        workspace.say(f"{error}: asked again")
        return None
    models = {"base"} if "model" in what else {"base", "edited"}
    if [row.id for row in rows] != [prompt.id for prompt in asked] or any(row.said.keys() != models for row in rows):
        workspace.say(f"{folder.responses} is incomplete: asked again")
        return None
    return with_prompts(rows, {prompt.id: prompt.text for prompt in asked})


def _fresh(compared: BaseAndEdited) -> dict[str, Any]:
    """The KL that was measured with the responses; everything that an earlier evaluation scored is reset."""
    divergences = {name: one.to_json() for name, one in compared.divergences.items()}
    return {**dict.fromkeys(OF_AN_EVALUATION), **divergences}


def _digest(adapter: Path) -> str:
    """SHA-256 over the adapter's weights and configuration."""
    state = hashlib.sha256()
    for file in sorted(adapter.glob("adapter_*")):
        with file.open("rb") as content:
            state.update(hashlib.file_digest(content, "sha256").digest())
    return state.hexdigest()
