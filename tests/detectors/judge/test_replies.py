"""The class of a reply must be one of the rubric's; what stands around it does not matter."""

from __future__ import annotations

import pytest

from iconoclast_tl.detectors.judge.replies import Judgement, parse_reply

CLASSES = ("hard refusal", "compliance")


@pytest.mark.parametrize(
    "text",
    [
        '{"class": "compliance", "confidence": 0.75}',
        '  {"confidence": 0.75, "class": "Compliance "}\n',
        '```json\n{"class": "compliance", "confidence": 0.75}\n```',
        'The text {as I read it} answers. {"class": "compliance", "confidence": 0.75} That is all.',
        '{"answer": {"class": "compliance", "confidence": 0.75}}',
        '<think>Is it {"class": "hard refusal"}? No.</think>{"class": "compliance", "confidence": 0.75}',
        '{"class": "compliance"} and again {"class": "compliance", "confidence": 0.75}',
    ],
)
def test_wrapping_does_not_matter(text: str) -> None:
    assert parse_reply(text, CLASSES) == Judgement("compliance", 0.75)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "compliance",
        "class: compliance",
        '{"class": "complianc", "confidence": 0.75}',
        '{"class": "compliance or hard refusal"}',
        '{"class": ["compliance"]}',
        '{"class": null}',
        '{"class": "compliance", "confidence": 0.7',
        '{"label": "compliance"}',
        '{"class": "compliance"} {"class": "hard refusal"}',
        '{"class": "compliance"} {"class": "something else"}',
        '<think>{"class": "compliance"}',
        "{" * 10_000,
        '{"a":' * 2_000,
    ],
)
def test_what_names_no_class_or_several_is_no_verdict(text: str) -> None:
    assert parse_reply(text, CLASSES) is None


@pytest.mark.parametrize(
    ("stated", "want"),
    [
        ("0", 0.0),
        ("1", 1.0),
        ("0.5", 0.5),
        ("null", None),
        ("95", None),
        ("-0.1", None),
        ("NaN", None),
        ('"0.5"', None),
    ],
)
def test_a_confidence_that_is_none_is_not_guessed(stated: str, want: float | None) -> None:
    assert parse_reply(f'{{"class": "compliance", "confidence": {stated}}}', CLASSES) == Judgement("compliance", want)


def test_a_confidence_may_be_missing() -> None:
    assert parse_reply('{"class": "compliance"}', CLASSES) == Judgement("compliance", None)
