"""Side effects of an edit: cross-entropy on texts, and tasks of the lm-evaluation-harness, base against edited.

Texts and tasks that the run's state already has are not measured again; files are compared by content.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from iconoclast_tl.evaluation.base_and_edited import ChangedModel
from iconoclast_tl.evaluation.baseline import Baseline
from iconoclast_tl.evaluation.corpora import ON_DISTRIBUTION, Corpus
from iconoclast_tl.evaluation.harness import HarnessConfig, run_tasks
from iconoclast_tl.evaluation.side_effects import cross_entropies, load_corpora, own_responses
from iconoclast_tl.evaluation.suite import EvaluationConfig
from iconoclast_tl.prompts.sources import PromptSource
from iconoclast_tl.stages.workspace import Workspace
from iconoclast_tl.statistics.paired_rates import paired_rates

TASK_FILES = ("*.yaml", "*.py", "*.json", "*.jsonl")
"""The files of a task folder whose content counts."""


def corpora_asked(config: EvaluationConfig) -> dict[str, Any]:
    """Corpus → everything that determines its texts."""
    asked: dict[str, Any] = {}
    for name in config.corpora:
        if name == ON_DISTRIBUTION:  # what the base says to all neutral prompts
            asked[name] = {}
            continue
        asked[name] = {"texts": config.corpus_texts, "tokens": config.corpus_tokens}
        file = Path(PromptSource.parse(name).name)
        if file.is_file():
            asked[name]["file"] = _digest([file])
    return asked


def tasks_asked(config: HarnessConfig) -> dict[str, Any] | None:
    """The harness' settings with a digest of its task files; None where no task is named."""
    if not config.tasks:
        return None
    files = [file for form in TASK_FILES for file in config.folder.rglob(form)] if config.folder else []
    return {**config.model_dump(mode="json"), "files": _digest(sorted(files))}


def missing_corpora(workspace: Workspace) -> dict[str, Corpus]:
    """The corpora that are yet to be measured, loaded, without that of the base's responses.

    Before anything is generated, so that a source that cannot be read costs nothing.
    """
    config, known = workspace.settings.evaluation, _known(workspace)
    missing = tuple(name for name in config.corpora if name not in known)
    return load_corpora(config.model_copy(update={"corpora": missing}), workspace.model)


def all_cross_entropies(
    workspace: Workspace, base: Baseline, change: ChangedModel | None, corpora: Mapping[str, Corpus]
) -> dict[str, Any]:
    """Corpus → model → nats a token and perplexity, and the paired difference; includes earlier measurements."""
    asked, known = corpora_asked(workspace.settings.evaluation), _known(workspace)
    missing = dict(corpora)
    if ON_DISTRIBUTION in asked and ON_DISTRIBUTION not in known:
        missing = {ON_DISTRIBUTION: own_responses(base), **missing}
    if not missing:
        return known
    found = cross_entropies(base, missing, change)
    known |= {name: {"asked": asked[name], **one} for name, one in found.items()}
    return {name: known[name] for name in dict.fromkeys([*asked, *known])}


def harness_tasks(workspace: Workspace, base: Baseline, change: ChangedModel | None) -> dict[str, Any] | None:
    """Task scores of base and edited, paired document by document where a task's metric is 0 or 1."""
    config = workspace.settings.harness
    before, asked = workspace.folder.read_state().get("tasks"), tasks_asked(config)
    if asked is None or (before or {}).get("asked") == asked:
        return before
    found = run_tasks(base.model, change, config, base.config.batch_rows, workspace.settings.prompts.system)
    result: dict[str, Any] = {"asked": asked, **found.to_json()}
    for name, task in found.tasks.items():
        if task.main is not None and "edited" in task.correct:
            pairs = paired_rates(task.correct["base"], task.correct["edited"])
            result["tasks"][name]["paired"] = pairs.to_json()
    return result


def _known(workspace: Workspace) -> dict[str, Any]:
    """The corpora in the run's state, without those whose texts have changed since."""
    asked = corpora_asked(workspace.settings.evaluation)
    before: Mapping[str, Any] = workspace.folder.read_state().get("cross_entropy") or {}
    return {name: one for name, one in before.items() if asked.get(name, one["asked"]) == one["asked"]}


def _digest(files: Iterable[Path]) -> str:
    state = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            state.update(hashlib.file_digest(content, "sha256").digest())
    return state.hexdigest()
