"""Scoring: detectors label the stored responses of a run, one detector after the other.

Only responses.jsonl is read: a new detector can be asked long after the models are gone. Where a detector's model does
not fit into memory beside the evaluated one, that is taken out first; each is closed before the next is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from iconoclast_tl.detectors.detector import NO_LABEL, UNLABELLED, Detector, Exchange, Label, label_all
from iconoclast_tl.detectors.registry import detector_names, make_detector, require_detectors
from iconoclast_tl.evaluation.evaluate import measures, tell_unlabelled
from iconoclast_tl.evaluation.scoring import by_budget
from iconoclast_tl.evaluation.suite import EvaluationConfig
from iconoclast_tl.evaluation.transcript import (
    Transcript,
    TranscriptRow,
    by_set,
    models_of,
    read_transcript,
    with_labels,
    write_transcript,
)
from iconoclast_tl.execution.memory import free_bytes
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.progress import Say, Track, silent, unheard
from iconoclast_tl.foundation.storage import as_json, write_json
from iconoclast_tl.prompts.contrast import load_contrast_set
from iconoclast_tl.stages.continuation import naming_plugins, plugins_known, require_same_code, require_same_detector
from iconoclast_tl.stages.own_prompts import model_folder, with_own_prompts
from iconoclast_tl.stages.results import publish, withdraw
from iconoclast_tl.stages.run_folder import RunFolder
from iconoclast_tl.stages.settings import Nested, Settings, effective_settings

Release = Callable[[], None]
"""Takes the evaluated model out of memory."""


@dataclass(frozen=True)
class Scoring:
    """A run folder to score, the settings, and where progress and notes go."""

    folder: RunFolder
    config: EvaluationConfig
    track: Track = silent
    say: Say = unheard
    release: Release | None = None
    """None where no evaluated model is in memory."""


def scored(job: Scoring, rows: Transcript) -> dict[str, Any]:
    """Label the responses by every detector that the settings name; returns the run's state with all measures.

    Labels that an equal detector gave before are kept; what it could not label is asked again. Raises `UserError` where
    a detector cannot be had; what the others said is kept then.
    """
    before = job.folder.read_state()
    known = before.get("detectors") or {}
    rows = _with_known_labels(rows, known)
    budgets: dict[str, Any] = {}
    for name in detector_names(job.config):
        detector = make_detector(job.config, name)
        about = as_json(detector.about())
        is_known = (known.get(name) or {}).get("about") == about
        try:
            if not is_known:  # so that no labels ever stand under what another detector says of itself
                if name == job.config.detector:
                    withdraw(job.folder)  # its rates are not those of the labels to come
                known = {other: one for other, one in known.items() if other != name}
                job.folder.record(detectors=known)
            rows, is_new = _labelled(job, rows, detector, is_known)
            if is_new:
                known = {**known, name: {"about": about, "remarks": as_json(detector.remarks)}}
            if name == job.config.detector and job.config.budgets:
                budgets = _by_budget(job, rows, detector, {} if is_new else before)
        finally:
            detector.close()
        _keep(job, rows)
        job.folder.record(detectors=known)
    return job.folder.record(**_results(job, rows, known, budgets))


def rescored(
    folder: RunFolder, command_line: Nested, recipe: Path | None, track: Track = silent, say: Say = unheard
) -> dict[str, Any]:
    """Score the responses of an earlier evaluation and publish the results. Only the detectors' own models are loaded.

    Raises `UserError` where the folder holds no evaluation, or a detector reads prompts that cannot be had any more.
    """
    manifest = folder.read_manifest()
    if manifest is None or not folder.read_state().get("evaluated") or not folder.responses.is_file():
        raise UserError(
            f"{folder.path} holds no responses to score", want="a run that was evaluated", mend="leave --rescore out"
        )
    with naming_plugins(manifest):
        settings = effective_settings(command_line, recipe, manifest["settings"]).settings
        require_detectors(settings.evaluation)
    settings.evaluation.require_possible()
    job = Scoring(folder, settings.evaluation, track, say)
    if folder.is_searched:
        require_same_detector(settings.evaluation, Settings.model_validate(manifest["settings"]).evaluation)
        require_same_code(settings.evaluation, manifest)
    with folder.locked():
        rows = _with_prompts_as_wanted(settings, job)
        _require_whole(folder, rows)
        scored(job, rows)
        settings_now = {"settings": settings.model_dump(mode="json")}
        write_json(folder.manifest, {**manifest, **settings_now, **plugins_known(manifest)})
        return publish(folder)


def _with_prompts_as_wanted(settings: Settings, job: Scoring) -> Transcript:
    """The stored responses; with the prompts' texts, read from their sources, where a detector needs them."""
    rows = read_transcript(job.folder.responses)
    wanted = [name for name in detector_names(job.config) if make_detector(job.config, name).reads_prompts]
    if (wanted or job.config.keep_prompts) and any(row.prompt is None for row in rows):
        return with_prompts(rows, _prompts(settings, job.folder, wanted))
    return rows


def _require_whole(folder: RunFolder, rows: Transcript) -> None:
    """Raise `UserError` where the transcript lacks prompts, or responses of one of the models."""
    results = folder.read_state()
    wanted = results["splits"]["test"]
    counts = {name: len(members) for name, members in by_set(rows).items()}
    models = {model for model in ("base", "edited") if results.get(model)}
    if counts != wanted or any(row.said.keys() != models for row in rows):
        raise UserError(
            f"{folder.responses} is incomplete",
            got=counts,
            want=f"{wanted}, each with the responses of {' and '.join(sorted(models))}",
            mend="leave --rescore out: the model is asked again",
        )


def with_prompts(rows: Transcript, prompts: Mapping[str, str]) -> list[TranscriptRow]:
    """The rows with the texts of their prompts, by id."""
    return [replace(row, prompt=prompts.get(row.id, row.prompt)) for row in rows]


def _prompts(settings: Settings, folder: RunFolder, wanted: Sequence[str]) -> dict[str, str]:
    """Prompt id → text, from the sources that the run was made with; `UserError` where those have changed."""
    manifest = folder.read_manifest() or {}
    sources = with_own_prompts(settings.prompts, model_folder(settings))
    contrast = load_contrast_set(sources, settings.seed)
    changed = [name for name, digest in contrast.digests().items() if manifest["prompts"].get(name) != digest]
    if changed:
        raise UserError(
            f"the prompts of {folder.path} have changed, and {', '.join(wanted) or 'keep_prompts'} reads them",
            got=f"changed: {', '.join(changed)}",
            mend="restore the prompt files, or evaluate again",
        )
    asked = (*contrast.test.target, *contrast.test.neutral, *contrast.test.borderline)
    return {prompt.id: prompt.text for prompt in asked}


def _labelled(job: Scoring, rows: Transcript, detector: Detector, known: bool) -> tuple[list[TranscriptRow], bool]:
    """The rows with the detector's labels, and whether it had to be asked about any.

    known: an equal detector was asked before; only what it could not label is asked.
    """
    models, name = models_of(rows), detector.name
    before = [row.said[model].labels.get(name, NO_LABEL) if known else NO_LABEL for model in models for row in rows]
    asked = [row.exchange(model) for model in models for row in rows]
    missing = [number for number, label in enumerate(before) if label.name == UNLABELLED]
    if missing:
        make_room(job, detector)
        for number, label in zip(missing, label_all(detector, [asked[n] for n in missing], job.track), strict=True):
            before[number] = label
    tell_unlabelled(detector, before, job.say)
    parts = {model: before[start * len(rows) : (start + 1) * len(rows)] for start, model in enumerate(models)}
    return with_labels(rows, name, parts), bool(missing) or not known


def _with_known_labels(rows: Transcript, known: Mapping[str, Any]) -> list[TranscriptRow]:
    """Drop labels whose detector is not on record: scoring was killed, or failed, between the two files."""
    said = [
        {
            model: replace(one, labels={name: label for name, label in one.labels.items() if name in known})
            for model, one in row.said.items()
        }
        for row in rows
    ]
    return [replace(row, said=one) for row, one in zip(rows, said, strict=True)]


def make_room(job: Scoring, detector: Detector) -> None:
    """Release the evaluated model where the detector's model does not fit into memory beside it."""
    needs = detector.footprint()
    if needs is None or job.release is None:
        return
    free = free_bytes(needs.device)
    if not needs.fits(free):
        job.say(
            f"{detector.name} takes {needs.n_bytes / 1e9:.1f} GB and {free / 1e9:.1f} GB are free: "
            "the evaluated model is taken out of memory"
        )
        job.release()


def _by_budget(job: Scoring, rows: Transcript, detector: Detector, before: Mapping[str, Any]) -> dict[str, Any]:
    """What smaller budgets would have reported; taken from the state where the same budgets were scored before."""
    budgets = sorted(set(job.config.budgets))
    kept = {model: (before.get(model) or {}).get("by_budget") for model in models_of(rows)}
    if all(one is not None and list(one) == [str(budget) for budget in budgets] for one in kept.values()):
        return kept

    def label(asked: Sequence[tuple[TranscriptRow, str, int]]) -> list[Label]:
        make_room(job, detector)
        exchanges: list[Exchange] = [row.exchange(model, budget) for row, model, budget in asked]
        return label_all(detector, exchanges, job.track)

    return by_budget(rows, budgets, label)


def _keep(job: Scoring, rows: Transcript) -> None:
    write_transcript(job.folder.responses, rows, job.config.detector, job.config.keep_prompts)


def _results(job: Scoring, rows: Transcript, known: Mapping[str, Any], budgets: Mapping[str, Any]) -> dict[str, Any]:
    """The measures of the responses, together with the KL that was measured when they were generated."""
    before = job.folder.read_state()
    found = measures(rows, job.config.detector, job.config.max_new_tokens, known, budgets)
    for model in models_of(rows):
        kept = {key: value for key, value in (before.get(model) or {}).items() if key != "by_budget"}
        found[model] = {**kept, **found[model]}
    # `asked` is what an evaluation with the model was asked: it says so itself, once all of it is there.
    return {**found, "asked": None}
