"""The base model beside a changed one: both answer the same prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from iconoclast_tl.evaluation.baseline import Baseline
from iconoclast_tl.evaluation.metrics.divergence import Divergence, Moved
from iconoclast_tl.evaluation.metrics.length import n_words
from iconoclast_tl.evaluation.metrics.repetition import repetition
from iconoclast_tl.evaluation.scoring import Measured, measure
from iconoclast_tl.evaluation.suite import Truth
from iconoclast_tl.evaluation.transcript import RecordedResponse, TranscriptRow, token_ends, with_labels
from iconoclast_tl.execution.candidates import BatchCandidates
from iconoclast_tl.execution.generation import Response, generate
from iconoclast_tl.execution.teacher_forcing import repeated

ChangedModel = Callable[[], AbstractContextManager[Any]]
"""Enters a state in which the model is changed: an edit's hooks, or an adapter."""


@dataclass(frozen=True, eq=False)
class BaseAndEdited:
    """What the models `base` and (where there is a change) `edited` said to the base's suite."""

    base: Baseline
    responses: Mapping[str, Mapping[str, list[Response]]]
    """model → set → responses."""
    moved: Moved | None
    """How far the change moved the distribution on neutral prompts."""
    truth: Truth | None = None

    @cached_property
    def rows(self) -> list[TranscriptRow]:
        """The transcript, labelled by the base's detector, without where its tokens end."""
        return self._labelled(self._rows(lambda response: ()))

    def transcript(self) -> list[TranscriptRow]:
        """The same without labels, which may have to wait until the model has left memory, and with token ends."""
        decode = self.base.model.tokenizer.batch_decode

        def ends(response: Response) -> tuple[int, ...]:
            beginnings = [response.tokens[:length] for length in range(1, len(response.tokens) + 1)]
            decoded = decode([list(one) for one in beginnings], skip_special_tokens=True)
            return token_ends([text.strip() for text in decoded], response.text)

        return self._rows(ends)

    @cached_property
    def measured(self) -> dict[str, Measured]:
        """Model → rates, by the base's detector."""
        config = self.base.config
        return {
            model: measure(self.rows, model, self.base.detector.name, config.max_new_tokens) for model in self.responses
        }

    @property
    def divergences(self) -> dict[str, Divergence]:
        """Model → KL(base ‖ model)."""
        unmoved = Divergence(0.0, 0.0, len(self.base.suite["neutral"].rows), self.base.config.kl_length)
        return {"base": unmoved, **({} if self.moved is None else {"edited": self.moved.divergences[0]})}

    def to_json(self) -> dict[str, Any]:
        """The measures, model by model."""
        divergences = self.divergences
        return {name: {**one.to_json(), **divergences[name].to_json()} for name, one in self.measured.items()}

    def _rows(self, ends: Callable[[Response], tuple[int, ...]]) -> list[TranscriptRow]:
        rows = []
        for name, questions in self.base.suite.items():
            for number, prompt in enumerate(questions.prompts):
                said = {}
                for model, responses in self.responses.items():
                    response = responses[name][number]
                    grade = self.truth and self.truth(prompt.text, response.text)
                    numbers = {**_numbers(response), **(self._kl(name, number) if model == "edited" else {})}
                    said[model] = RecordedResponse(
                        text=response.text,
                        finished=response.finished,
                        ends=ends(response),
                        grade=grade,
                        numbers=numbers,
                    )
                rows.append(TranscriptRow(name, prompt.id, prompt.category, said, prompt.text))
        return rows

    def _labelled(self, rows: list[TranscriptRow]) -> list[TranscriptRow]:
        labels = {
            model: [label for given in self._labels(model).values() for label in given] for model in self.responses
        }
        return with_labels(rows, self.base.detector.name, labels)

    def _labels(self, model: str) -> Mapping[str, Sequence[Any]]:
        return self.base.labels if model == "base" else self._edited_labels

    @cached_property
    def _edited_labels(self) -> Mapping[str, Sequence[Any]]:
        return self.base.label(self.responses["edited"])

    def _kl(self, name: str, number: int) -> dict[str, float]:
        if name != "neutral" or self.moved is None:
            return {}
        first, sequence = self.moved.first_token[0, number], self.moved.sequence[0, number]
        return {"kl_first_token": float(first), "kl_sequence": float(sequence)}


def ask_base_and_edited(base: Baseline, change: ChangedModel | None, truth: Truth | None = None) -> BaseAndEdited:
    """Ask the base's suite of the base and, where there is a `change`, of the model under it; no hooks may be on.

    Target prompts are generated from anew. Of the others only those are whose response does not stay the base's.
    """
    if change is None:
        return BaseAndEdited(base, {"base": base.responses}, None, truth)
    responses, continuations = base.responses, base.continuations
    with change():
        moved = continuations.moved(BatchCandidates(), 1, base.track)
        same = {"neutral": moved.unchanged[0].tolist(), "target": [False] * len(base.suite["target"].rows)}
        changed = _changed(base, {**_unchanged(base, base.suite.keys() - same.keys()), **same})
    return BaseAndEdited(base, {"base": responses, "edited": changed}, moved, truth)


def _numbers(response: Response) -> dict[str, float]:
    return {"words": n_words(response.text), "repetition": repetition(response.text)}


def _unchanged(base: Baseline, names: Iterable[str]) -> dict[str, list[bool]]:
    found = {}
    for name in names:
        said = [response.tokens for response in base.responses[name]]
        found[name] = repeated(base.model, base.suite[name].rows, said, base.config.batch_rows).tolist()
    return found


def _changed(base: Baseline, unchanged: Mapping[str, list[bool]]) -> dict[str, list[Response]]:
    """The base's responses where they stay, generated ones elsewhere, all sets in one go."""
    asked = [(name, row) for name in base.suite for row, same in enumerate(unchanged[name]) if not same]
    rows, config = [base.suite[name].rows[row] for name, row in asked], base.config
    said = generate(base.model, rows, config.max_new_tokens, config.batch_rows, base.track, "generate, edited")
    responses = {name: list(base.responses[name]) for name in base.suite}
    for (name, row), response in zip(asked, said, strict=True):
        responses[name][row] = response
    return responses


def side_by_side(compared: BaseAndEdited, examples: int) -> list[tuple[str, str, str, str]]:
    """(set, prompt, base's response, edited's response) for the first `examples` prompts of every set."""
    base, edited = compared.responses["base"], compared.responses["edited"]
    return [
        (name, questions.prompts[i].text, base[name][i].text, edited[name][i].text)
        for name, questions in compared.base.suite.items()
        for i in range(min(examples, len(questions.prompts)))
    ]
