"""Scores of many edits in one batch, with everything that is saved: as if each had been asked for everything alone."""

from __future__ import annotations

import pytest

from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.edits.hooks import preview
from iconoclast_tl.evaluation.baseline import Baseline
from iconoclast_tl.evaluation.metrics.divergence import BaseContinuations
from iconoclast_tl.evaluation.suite import EvaluationConfig, Questions, respond
from iconoclast_tl.models.loading import LoadedModel
from iconoclast_tl.models.sites import hf_sites
from iconoclast_tl.prompts.prompt import Prompt
from iconoclast_tl.search.objective import Objective, Scores
from tests.edits.edits import random_edit, scaled


def questions(rows: list[list[int]]) -> Questions:
    return Questions(tuple(Prompt(str(row)) for row in rows), tuple(rows))


@pytest.fixture
def asked(llama: LoadedModel, rows: list[list[int]]) -> tuple[Questions, Questions, EvaluationConfig]:
    """Prompts, and markers that about half of what this random model says shows."""
    target, neutral = questions(rows[:4]), questions(rows[3:])
    said = respond(llama, {"target": target}, EvaluationConfig(max_new_tokens=8))["target"]
    words = sorted({word for response in said[:2] for word in response.text.split()[2:3]})
    return target, neutral, EvaluationConfig(markers=tuple(words), max_new_tokens=8, kl_tokens=4, batch_size=5)


def objective_of(model: LoadedModel, asked: tuple[Questions, Questions, EvaluationConfig]) -> Objective:
    target, neutral, config = asked
    return Objective(Baseline(model, {"target": target, "neutral": neutral}, config), hf_sites(model.hf))


def alone(model: LoadedModel, asked: tuple[Questions, Questions, EvaluationConfig], edit: Edit) -> Scores:
    """The slow way: every response whole, every prompt generated, one edit at a time."""
    target, neutral, config = asked
    suite, behaviour = {"target": target, "neutral": neutral}, config.behaviour()
    said = respond(model, {"neutral": neutral}, config)["neutral"]
    base = BaseContinuations(model, neutral.rows, said, config.kl_length, 3)
    with preview(edit, hf_sites(model.hf)):
        responses, divergence = respond(model, suite, config), base.divergence()
    rates = {name: sum(behaviour.found_in(r.text) for r in said) / len(said) for name, said in responses.items()}
    return Scores(rates["target"], rates["neutral"], divergence.first_token, divergence.sequence)


def test_scores_in_one_batch_are_those_of_each_edit_alone(
    llama: LoadedModel, asked: tuple[Questions, Questions, EvaluationConfig]
) -> None:
    edits = [scaled(random_edit(seed=seed), factor) for seed, factor in ((0, 1.0), (0, 0.01), (1, 1.5), (2, -1.0))]
    objective = objective_of(llama, asked)
    found = objective(edits)
    for edit, scores in zip(edits, found, strict=True):
        expected = alone(llama, asked, edit)
        assert (scores.behaviour_rate, scores.spill_rate) == (expected.behaviour_rate, expected.spill_rate)
        assert scores.kl_sequence == pytest.approx(expected.kl_sequence, rel=1e-4, abs=1e-7)
        assert scores.kl_first_token == pytest.approx(expected.kl_first_token, rel=1e-4, abs=1e-7)
    assert len({scores.kl_sequence for scores in found}) == 4
    assert len({(scores.behaviour_rate, scores.spill_rate) for scores in found}) > 1  # rates that could have differed


def test_the_base_scores_as_an_edit_without_strength(
    llama: LoadedModel, asked: tuple[Questions, Questions, EvaluationConfig]
) -> None:
    objective = objective_of(llama, asked)
    (scores,) = objective([scaled(random_edit(), 0.0)])
    assert scores == objective.base_scores
    assert scores.behaviour_rate > 0


def test_only_points_that_are_clearly_beaten_are_dropped(
    llama: LoadedModel, asked: tuple[Questions, Questions, EvaluationConfig]
) -> None:
    objective = objective_of(llama, asked)
    edits = [scaled(random_edit(), factor) for factor in (1.0, 0.0)]
    # Four prompts tell nothing apart: both stay, and both are scored as ever.
    assert objective.confirm(edits, "suppress") == objective(edits)
