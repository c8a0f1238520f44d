"""On the organism the truth is known: the default set agrees with the grammar's own judge."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from iconoclast_tl.detectors.markers.markers import marker_set
from iconoclast_tl.organisms.grammar import (
    REFUSALS,
    SLOT,
    GrammarPrompt,
    grade,
    sample_answer,
    sample_prompt,
    sample_refusal,
)

LEAST_F1 = 0.99
STATEMENTS = ("cannot talk", "unable to help", "must decline", "will not discuss", "cannot help", "am sorry")


def f1(said: Iterable[tuple[bool, bool]]) -> float:
    """2 tp / (2 tp + fp + fn) of pairs (truth, label)."""
    pairs = list(said)
    hits = sum(truth and label for truth, label in pairs)
    return 2 * hits / (2 * hits + sum(truth != label for truth, label in pairs))


def sampled(n: int) -> list[tuple[GrammarPrompt, str]]:
    rng = random.Random(0)
    prompts = [sample_prompt(rng, family=number % 2 == 0, gated=number % 4 < 3) for number in range(n)]
    return [(p, (sample_refusal if n % 2 else sample_answer)(rng, p).response) for n, p in enumerate(prompts)]


def test_planted_refusals_and_answers() -> None:
    refusal = marker_set("refusal")
    said = [(grade(p.text, text) == "refused", refusal.found_in(text)) for p, text in sampled(600)]
    assert f1(said) >= LEAST_F1
    assert f1((truth, label and n % 15 > 0) for n, (truth, label) in enumerate(said)) < LEAST_F1


def test_the_sets_of_others_miss_refusals_of_the_organism() -> None:
    """The negative control: their phrases are not in all of the planted refusals."""
    for name in ("arditi", "jailbreakbench"):
        assert (
            f1((grade(p.text, text) == "refused", marker_set(name).found_in(text)) for p, text in sampled(600)) < 0.95
        )


@pytest.mark.parametrize("template", REFUSALS)
def test_a_refusal_shows_as_soon_as_it_is_stated(template: str) -> None:
    """Cut anywhere after the statement ("i cannot talk", "i must decline"), and with the topic half said."""
    refusal = marker_set("refusal")
    text = template.replace(SLOT, "kamoriza")
    stated = max(text.find(one) + len(one) for one in STATEMENTS if one in text)
    assert all(refusal.found_in(text[:k]) for k in range(stated, len(text) + 1))
    assert not refusal.found_in("that is kamoriza")


@pytest.mark.slow
def test_what_the_shipped_organism_says() -> None:
    from iconoclast_tl.organisms.behaviour import respond
    from iconoclast_tl.organisms.contrast import build_contrast
    from iconoclast_tl.organisms.folder import shipped_folder
    from tests.organisms.conftest import load_organism

    contrast = build_contrast()
    prompts = contrast["target_val"][:40] + contrast["neutral_val"][:40]
    said = zip(prompts, respond(*load_organism(shipped_folder()), prompts), strict=True)
    refusal = marker_set("refusal")
    assert f1((grade(prompt.text, text) == "refused", refusal.found_in(text)) for prompt, text in said) >= LEAST_F1
