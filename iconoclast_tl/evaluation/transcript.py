"""The transcript of an evaluation: what every model said to every prompt, with its labels; the file responses.jsonl.

A prompt is named by its id; its text is kept only where that was asked for. Scores are computed from a transcript
alone, so that another detector can be asked later without the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from iconoclast_tl.detectors.detector import Exchange, Label
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.storage import read_jsonl, write_jsonl


@dataclass(frozen=True, kw_only=True)
class RecordedResponse:
    """One response."""

    text: str
    finished: bool
    """Whether the model ended it within the budget."""
    ends: tuple[int, ...]
    """Characters of the text that the first 1, 2, … tokens make."""
    labels: Mapping[str, Label] = field(default_factory=dict)
    """Detector → its label."""
    grade: str | None = None
    """answered, refused or broken, where the truth is known."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """What was measured of this response alone, such as `kl_sequence`."""

    def within(self, budget: int) -> str:
        """What a budget of so many tokens would have left of it."""
        return self.text if budget >= len(self.ends) else self.text[: self.ends[budget - 1]]

    def to_json(self, primary: str) -> dict[str, Any]:
        """As it stands in responses.jsonl; `behaviour` is what the detector `primary` says."""
        label = self.labels.get(primary)
        return {
            "text": self.text,
            "finished": self.finished,
            "ends": list(self.ends),
            "behaviour": label and label.shows,
            "labels": {name: label.to_json() for name, label in self.labels.items()},
            **({} if self.grade is None else {"grade": self.grade}),
            **self.numbers,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> RecordedResponse:
        """What `to_json` wrote."""
        own = {"text", "finished", "ends", "behaviour", "labels", "grade"}
        return cls(
            text=content["text"],
            finished=content["finished"],
            ends=tuple(content["ends"]),
            labels={name: Label.from_json(label) for name, label in content["labels"].items()},
            grade=content.get("grade"),
            numbers={name: value for name, value in content.items() if name not in own},
        )


@dataclass(frozen=True)
class TranscriptRow:
    """One prompt of one set (`target`, `neutral`, `borderline`), and what each model (`base`, `edited`) said to it."""

    set: str
    id: str
    category: str | None
    said: Mapping[str, RecordedResponse]
    prompt: str | None = None

    def exchange(self, model: str, budget: int | None = None) -> Exchange:
        """What a detector is shown."""
        said = self.said[model]
        return Exchange(said.text if budget is None else said.within(budget), self.prompt)


Transcript = Sequence[TranscriptRow]


def models_of(rows: Transcript) -> list[str]:
    """The models of a transcript, `base` first."""
    return list(rows[0].said)


def by_set(rows: Transcript) -> dict[str, list[TranscriptRow]]:
    """The rows of every set, in order."""
    found: dict[str, list[TranscriptRow]] = {}
    for row in rows:
        found.setdefault(row.set, []).append(row)
    return found


def with_labels(rows: Transcript, name: str, labels: Mapping[str, Sequence[Label]]) -> list[TranscriptRow]:
    """The rows with the labels of detector `name`: model → a label a row."""
    result = []
    for number, row in enumerate(rows):
        said = {
            model: replace(one, labels={**one.labels, name: labels[model][number]}) for model, one in row.said.items()
        }
        result.append(replace(row, said=said))
    return result


def token_ends(beginnings: Sequence[str], text: str) -> tuple[int, ...]:
    """Characters of `text` that each of its beginnings, decoded by themselves, has in common with it.

    A token may end within a character, which decodes to something else until the character is whole.
    """
    return tuple(_in_common(beginning, text) for beginning in beginnings)


def _in_common(a: str, b: str) -> int:
    if b.startswith(a):
        return len(a)
    return next(place for place, (one, other) in enumerate(zip(a, b + "\0", strict=False)) if one != other)


def write_transcript(path: Path, rows: Transcript, primary: str, keep_prompts: bool) -> None:
    """Write responses.jsonl, atomically."""
    write_jsonl(path, _as_json(rows, primary, keep_prompts))


def _as_json(rows: Transcript, primary: str, keep_prompts: bool) -> Iterator[dict[str, Any]]:
    for row in rows:
        kept = {"prompt": row.prompt} if keep_prompts and row.prompt is not None else {}
        said = {model: one.to_json(primary) for model, one in row.said.items()}
        yield {"set": row.set, "id": row.id, "category": row.category, **kept, **said}


def read_transcript(path: Path) -> list[TranscriptRow]:
    """Read responses.jsonl; `UserError` where it is missing, empty, or of an earlier version."""
    rows = []
    for content in read_jsonl(path):
        try:
            said = {
                str(model): RecordedResponse.from_json(content[model])
                for model in ("base", "edited")
                if model in content
            }
            rows.append(TranscriptRow(content["set"], content["id"], content["category"], said, content.get("prompt")))
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} is not a transcript of this version",
                got=f"line {len(rows) + 1} without {error}",
                mend="delete it and evaluate the run again",
            ) from error
    if not rows or any(not row.said for row in rows):
        raise UserError(f"{path} holds no responses", mend="evaluate the run first")
    return rows
