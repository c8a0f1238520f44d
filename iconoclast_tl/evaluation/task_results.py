"""Results of the lm-evaluation-harness, task by task: its scores, and the answers that pair base and edited.

A mean over documents hides which of them changed. So a metric that says 0 or 1 is kept document by document: the two
models form pairs, and McNemar's test applies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class TaskScore:
    """A metric of a task, as the harness has it."""

    value: float
    stderr: float | None
    """None where the harness gives none."""
    higher_is_better: bool | None


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """What came out of one task or group, by model: `base`, and `edited` where there is a change."""

    name: str
    version: str | None
    """Of the task's definition."""
    n: int
    """Documents."""
    shots: int | None
    subtasks: tuple[str, ...]
    """Of a group."""
    scores: Mapping[str, Mapping[str, TaskScore]]
    """model → "metric,filter" → score."""
    main: str | None
    """The first "metric,filter" that says of every document 0 or 1; None where no metric does."""
    documents: tuple[str, ...]
    """`task/number` of every document that `main` judges."""
    correct: Mapping[str, tuple[bool, ...]]
    """model → the main metric of every document, in the order of `documents`: pairs for McNemar's test."""

    def to_json(self) -> dict[str, Any]:
        """As it stands in results.json, without the single documents."""
        scores = {model: {key: asdict(score) for key, score in found.items()} for model, found in self.scores.items()}
        return {
            "version": self.version,
            "n": self.n,
            "shots": self.shots,
            "subtasks": list(self.subtasks),
            "main": self.main,
            **scores,
        }


@dataclass(frozen=True)
class TaskResults:
    """Results of all tasks that were asked for, their groups and subtasks, by name."""

    harness: str
    """Version of lm_eval."""
    chat_template: bool
    limit: int | None
    tasks: Mapping[str, TaskResult]

    def to_json(self) -> dict[str, Any]:
        """As it stands in results.json."""
        return {
            "lm_eval": self.harness,
            "chat_template": self.chat_template,
            "limit": self.limit,
            "tasks": {name: task.to_json() for name, task in self.tasks.items()},
        }


def task_result(name: str, found: Mapping[str, Any]) -> TaskResult:
    """Of what `simple_evaluate` returned for every model, with samples, all that concerns one task or group."""
    base = found["base"]
    leaves = _leaves(name, base)
    main = _main_metric([sample for leaf in leaves for sample in base["samples"].get(leaf, [])])
    judged = {model: _judged(leaves, run, main) for model, run in found.items()} if main else {}
    documents = list(judged.get("base", {}))
    if any(list(one) != documents for one in judged.values()):
        raise RuntimeError(f"the harness did not ask {name} of both models in the same words")
    version = base["versions"].get(name)
    return TaskResult(
        name=name,
        version=None if version is None else str(version),
        n=sum(base["n-samples"][leaf]["effective"] for leaf in leaves),
        shots=base["n-shot"].get(name),
        subtasks=tuple(leaves) if leaves != [name] else (),
        scores={model: _scores(name, run) for model, run in found.items()},
        main=main,
        documents=tuple(document for document, _ in documents),
        correct={model: tuple(one.values()) for model, one in judged.items()},
    )


def _leaves(name: str, run: Any) -> list[str]:
    """The tasks of a group, of its subgroups too; a task by itself."""
    below = run.get("group_subtasks", {}).get(name)
    return [leaf for child in below for leaf in _leaves(child, run)] if below else [name]


def _scores(name: str, run: Any) -> dict[str, TaskScore]:
    """Every numeric "metric,filter" of a task, or of a group that has one of its own."""
    entries, better = run["results"][name], run.get("higher_is_better", {}).get(name, {})
    found = {}
    for key, value in entries.items():
        metric, comma, chosen = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            stderr = entries.get(f"{metric}_stderr,{chosen}")
            number = float(stderr) if isinstance(stderr, int | float) else None
            found[key] = TaskScore(float(value), number, better.get(metric))
    return found


def _main_metric(samples: Sequence[Mapping[str, Any]]) -> str | None:
    """The first metric, with the filter that comes first, which gives 0 or 1 for every document."""
    chosen = next((sample["filter"] for sample in samples), None)
    for metric in samples[0]["metrics"] if samples else ():
        values = [sample.get(metric) for sample in samples if sample["filter"] == chosen]
        if all(isinstance(value, int | float | np.number | np.bool_) and value in (0, 1) for value in values):
            return f"{metric},{chosen}"
    return None


def _judged(leaves: Sequence[str], run: Any, main: str) -> dict[tuple[str, str], bool]:
    """(Document, hash of what was asked) → what the main metric says of it."""
    metric, _, chosen = main.partition(",")
    return {
        (f"{leaf}/{sample['doc_id']}", sample["prompt_hash"]): bool(sample[metric])
        for leaf in leaves
        for sample in run["samples"][leaf]
        if sample["filter"] == chosen
    }
