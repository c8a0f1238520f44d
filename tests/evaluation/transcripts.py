"""Transcripts made by hand."""

from __future__ import annotations

from iconoclast_tl.detectors.detector import Label
from iconoclast_tl.evaluation.transcript import RecordedResponse, TranscriptRow

YES, NO, UNSURE = Label("refusal", True, 1.0), Label("compliance", False, 0.5), Label("uncertain", None, 0.4)


def said(text: str, *labels: Label, grade: str | None = None) -> RecordedResponse:
    """A response of one token a word; its labels are of the detectors a, b, …."""
    words = text.split()
    ends = [len(" ".join(words[:number])) for number in range(1, len(words) + 1)]
    numbers = {"words": float(len(words)), "repetition": 0.0}
    return RecordedResponse(
        text=text,
        finished=True,
        ends=tuple(ends),
        labels=dict(zip("abc", labels, strict=False)),
        grade=grade,
        numbers=numbers,
    )


def row(
    name: str, number: int, base: RecordedResponse, edited: RecordedResponse | None = None, category: str | None = None
) -> TranscriptRow:
    """What one prompt of set `name` was answered."""
    models = {"base": base} if edited is None else {"base": base, "edited": edited}
    return TranscriptRow(name, f"{name}{number}", category, models, f"prompt {number}")
