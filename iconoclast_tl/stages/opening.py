"""Open a workspace: load settings, prompts and model, check them against each other, and lock the run folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from iconoclast_tl.architecture.offloading import is_offloaded
from iconoclast_tl.architecture.writers import discovered_writers
from iconoclast_tl.detectors.registry import require_detectors, search_detector
from iconoclast_tl.directions.directions import load_directions
from iconoclast_tl.edits.ground import named_parts
from iconoclast_tl.evaluation.harness import require_tasks
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.progress import Say, Track, silent, unheard
from iconoclast_tl.foundation.storage import write_json
from iconoclast_tl.models.load import load_model
from iconoclast_tl.models.model import Model
from iconoclast_tl.organisms.grammar import grade
from iconoclast_tl.prompts.contrast import load_contrast_set
from iconoclast_tl.stages.continuation import (
    naming_plugins,
    plugins_known,
    require_same_code,
    require_same_detector,
    require_same_directions,
    require_same_run,
)
from iconoclast_tl.stages.manifest import describe_model, make_manifest
from iconoclast_tl.stages.own_prompts import is_graded, model_folder, with_own_prompts
from iconoclast_tl.stages.run_folder import RunFolder
from iconoclast_tl.stages.settings import Effective, Nested, Settings, effective_settings
from iconoclast_tl.stages.workspace import Workspace


@contextmanager
def open_workspace(
    command_line: Nested, recipe: Path | None, out: Path, track: Track = silent, say: Say = unheard
) -> Iterator[Workspace]:
    """Load and check everything, then make or continue the run folder `out` and keep others out of it.

    Nothing is written before settings, prompts, model and the folder's earlier content agree.
    """
    folder = RunFolder(out)
    folder.require_writable()
    manifest = folder.read_manifest()
    with naming_plugins(manifest):
        effective = effective_settings(command_line, recipe, manifest["settings"] if manifest else None)
        search_detector(effective.settings.evaluation).close()
    settings = effective.settings
    place = model_folder(settings)
    contrast = load_contrast_set(with_own_prompts(settings.prompts, place), settings.seed)
    if contrast.dropped:
        say(f"{contrast.dropped} duplicate prompts were left out")
    _require_askable(effective)
    model = load_model(
        settings.model,
        system=settings.prompts.system,
        raw_prompts=settings.prompts.raw_prompts,
        attention_only=settings.edit.attention_only,
    )
    for note in (*model.notes, *_caveats(model)):
        say(note)
    workspace = Workspace(
        settings=settings,
        folder=folder,
        model=model,
        contrast=contrast,
        truth=grade if is_graded(place, settings) else None,
        track=track,
        say=say,
    )
    _require_consistent(workspace, manifest)
    with folder.locked():
        _write_manifest(workspace, effective, manifest)
        try:
            yield workspace
        except UserError:
            if manifest is not None:  # settings that failed are not saved
                workspace.remember(settings=manifest["settings"])
            raise


def _require_consistent(workspace: Workspace, manifest: Mapping[str, Any] | None) -> None:
    """Raise `UserError` where settings, prompts, model and the folder's earlier content do not go together."""
    settings, model, folder = workspace.settings, workspace.model, workspace.folder
    _ = workspace.tokens_digest  # every prompt must render and fit the context before anything is computed
    _ = named_parts(model, settings.edit), workspace.positions  # parts that are named must be there
    if is_offloaded(model.hf) and settings.search.method != "tpe":
        workspace.say(
            "weights are offloaded: a gradient holds those of all layers until it is done; --search tpe does not"
        )
    if settings.directions.file is not None:
        load_directions(Path(settings.directions.file), model.n_layers, model.d_model)
    if manifest is None:
        return
    if folder.is_searched:
        before = Settings.model_validate(manifest["settings"])
        require_same_directions(settings.directions, before.directions)
        require_same_detector(settings.evaluation, before.evaluation)
        require_same_code(settings.evaluation, manifest)
    digests = workspace.contrast.digests()
    require_same_run(folder.path, manifest, model.dtype, model.fingerprint, digests, workspace.tokens_digest)


def _require_askable(effective: Effective) -> None:
    """Raise `UserError` for detectors, corpora and tasks that cannot work, before the model loads.

    Those of a continued run folder were checked when it was begun, and other commands may not need them; the detector
    that labels a search's responses must be there, which is checked with the settings.
    """
    settings = effective.settings
    asked = {key for key, source in effective.provenance.items() if source != "run folder"}
    if any(key.startswith("evaluation.") for key in asked):
        require_detectors(settings.evaluation)
        settings.evaluation.require_possible()
    if settings.harness.tasks and any(key.startswith("harness.") for key in asked):
        require_tasks(settings.harness.tasks, settings.harness.folder)


def _caveats(model: Model) -> list[str]:
    """What a user must know about edits on this architecture."""
    found = []
    if others := discovered_writers(model.hf):
        name, site = type(model.hf).__name__, next(iter(others))
        found.append(
            f"{name} has writers of other names, found by what they compute: {others[site]} and {len(others) - 1} more"
        )
    if not model.gains:
        return found
    return [
        *found,
        f"{type(model.hf).__name__} normalises what its writers write before it is added to the stream: directions are "
        "weighted by its gains, which is exact at λ = 1; between 0 and 1 more or less than 1 − λ is left",
    ]


def _write_manifest(workspace: Workspace, effective: Effective, before: Mapping[str, Any] | None) -> None:
    """Begin the manifest, or put the effective settings into it: what made the earlier parts stays on record."""
    settings = effective.settings.model_dump(mode="json")
    if before is not None:
        write_json(workspace.folder.manifest, {**before, "settings": settings, **plugins_known(before)})
        return
    model = describe_model(workspace.model, workspace.settings.model.name)
    contrast = workspace.contrast
    new = make_manifest(settings, model, contrast.digests(), contrast.counts(), workspace.tokens_digest)
    write_json(workspace.folder.manifest, {**new, **plugins_known(None)})
