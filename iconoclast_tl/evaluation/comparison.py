"""The base beside a changed model: the same suite asked of both, in one place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from iconoclast_tl.edits.hooks import Rows
from iconoclast_tl.evaluation.baseline import Baseline
from iconoclast_tl.evaluation.generation import Response, generate
from iconoclast_tl.evaluation.metrics.divergence import Divergence
from iconoclast_tl.evaluation.suite import EvaluationConfig, Judge, Measured, Questions, measure
from iconoclast_tl.evaluation.teacher_forcing import repeated

Change = Callable[[], AbstractContextManager[Any]]
"""Enters a state in which the model is changed: an edit's hooks, or an adapter."""


@dataclass(frozen=True)
class Compared:
    """What the models `base` and (where there is a change) `edited` said to a suite, and what was measured of it."""

    suite: Mapping[str, Questions]
    responses: Mapping[str, Mapping[str, list[Response]]]
    """model → set → responses."""
    measured: Mapping[str, Measured]

    def to_json(self) -> dict[str, Any]:
        """The measures, model by model."""
        return {name: measured.to_json() for name, measured in self.measured.items()}


def compare(base: Baseline, change: Change | None, judge: Judge | None = None) -> Compared:
    """Ask the base's suite of the base and, where there is a `change`, of the model under it; no hooks may be on.

    Target prompts are generated from anew. Of the others only those are whose response does not stay the base's.
    """
    neutral, responses = base.suite["neutral"], {"base": base.responses}
    divergences = {"base": Divergence(0.0, 0.0, len(neutral.rows), base.config.kl_length)}  # KL(base ‖ base)
    if change is not None:
        continuations = base.continuations
        with change():
            moved = continuations.moved(Rows(), 1, base.track)
            divergences["edited"] = moved.divergences[0]
            same = {"neutral": moved.unchanged[0].tolist(), "target": [False] * len(base.suite["target"].rows)}
            responses["edited"] = _changed(base, {**_unchanged(base, base.suite.keys() - same.keys()), **same})
    measured = {name: measure(base.suite, responses[name], divergences[name], base.config, judge) for name in responses}
    return Compared(base.suite, responses, measured)


def _unchanged(base: Baseline, names: Iterable[str]) -> dict[str, list[bool]]:
    found = {}
    for name in names:
        said = [response.tokens for response in base.responses[name]]
        found[name] = repeated(base.model, base.suite[name].rows, said, base.config.rows).tolist()
    return found


def _changed(base: Baseline, unchanged: Mapping[str, list[bool]]) -> dict[str, list[Response]]:
    """The base's responses where they stay, generated ones elsewhere, all sets in one go."""
    asked = [(name, row) for name in base.suite for row, same in enumerate(unchanged[name]) if not same]
    rows, config = [base.suite[name].rows[row] for name, row in asked], base.config
    said = generate(base.model, rows, config.max_new_tokens, config.rows, base.track, "generate, edited")
    responses = {name: list(base.responses[name]) for name in base.suite}
    for (name, row), response in zip(asked, said, strict=True):
        responses[name][row] = response
    return responses


def response_rows(compared: Compared, config: EvaluationConfig, judge: Judge | None) -> list[dict[str, Any]]:
    """One row a prompt for responses.jsonl: its id (not its text), and what each model said, labelled."""
    behaviour = config.behaviour()
    rows = []
    for name, questions in compared.suite.items():
        for index, prompt in enumerate(questions.prompts):
            row: dict[str, Any] = {"set": name, "id": prompt.id, "category": prompt.category}
            for model, said in compared.responses.items():
                response = said[name][index]
                row[model] = {
                    "text": response.text,
                    "finished": response.finished,
                    "behaviour": behaviour.found_in(response.text),
                    **({"verdict": judge(prompt.text, response.text)} if judge else {}),
                }
            rows.append(row)
    return rows


def side_by_side(compared: Compared, examples: int) -> list[tuple[str, str, str, str]]:
    """(set, prompt, base's response, edited's response) for the first `examples` prompts of every set."""
    base, edited = compared.responses["base"], compared.responses["edited"]
    return [
        (name, questions.prompts[i].text, base[name][i].text, edited[name][i].text)
        for name, questions in compared.suite.items()
        for i in range(min(examples, len(questions.prompts)))
    ]
