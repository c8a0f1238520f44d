"""Scores of many edits in one batch, with everything that is saved: as if each had been asked for everything alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from iconoclast_tl.architecture.hook_points import hf_sites
from iconoclast_tl.detectors.detector import Exchange, Label
from iconoclast_tl.detectors.markers.detector import MarkerDetector
from iconoclast_tl.detectors.markers.markers import marker_set
from iconoclast_tl.detectors.registry import make_detector
from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.edits.hooks import preview
from iconoclast_tl.evaluation.baseline import Baseline
from iconoclast_tl.evaluation.metrics.divergence import BaseContinuations
from iconoclast_tl.evaluation.suite import EvaluationConfig, Questions, respond
from iconoclast_tl.execution.generation import Lanes, Response
from iconoclast_tl.foundation.progress import Track, silent
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.prompt import Prompt
from iconoclast_tl.search import objective
from iconoclast_tl.search.objective import Goal, Objective, OnTrain, ValScores
from tests.edits.edits import random_edit, scaled
from tests.execution.test_resumption import edit_from
from tests.execution.ties import without_ties


def questions(rows: list[list[int]]) -> Questions:
    return Questions(tuple(Prompt(str(row)) for row in rows), tuple(rows))


@pytest.fixture
def asked(llama: Model, rows: list[list[int]]) -> tuple[Questions, Questions, EvaluationConfig]:
    """Prompts, and markers that about half of what this random model says shows."""
    target, neutral = questions(rows[:4]), questions(rows[3:])
    said = respond(llama, {"target": target}, EvaluationConfig(max_new_tokens=8))["target"]
    words = sorted({word for response in said[:2] for word in response.text.split()[2:3]})
    return target, neutral, EvaluationConfig(markers=tuple(words), max_new_tokens=8, kl_tokens=4, batch_size=5)


class ByPrompt(MarkerDetector):
    """Calls the response to some prompts the behaviour, whatever is said: every third."""

    reads_prompts = True

    def __init__(self, *asked: Questions) -> None:
        super().__init__(marker_set(("never said",)))
        self.some = {prompt.text for one in asked for prompt in one.prompts[1::3]}

    def label(self, exchanges: Sequence[Exchange], track: Track = silent) -> list[Label]:
        return [Label("x" if one.prompt in self.some else "-", one.prompt in self.some, 1.0) for one in exchanges]


def objective_of(model: Model, asked: tuple[Questions, Questions, EvaluationConfig]) -> Objective:
    target, neutral, config = asked
    return Objective(
        Baseline(model, {"target": target, "neutral": neutral}, config, make_detector(config, config.detector)),
        hf_sites(model.hf),
    )


def alone(model: Model, asked: tuple[Questions, Questions, EvaluationConfig], edit: Edit) -> ValScores:
    """The slow way: every response whole, every prompt generated, one edit at a time."""
    target, neutral, config = asked
    suite, behaviour = {"target": target, "neutral": neutral}, marker_set(config.markers)
    said = respond(model, {"neutral": neutral}, config)["neutral"]
    base = BaseContinuations(model, neutral.rows, [one.tokens for one in said], config.kl_length, 3)
    with preview(edit, hf_sites(model.hf)):
        responses, divergence = respond(model, suite, config), base.divergence()
    rates = {name: sum(behaviour.found_in(r.text) for r in said) / len(said) for name, said in responses.items()}
    return ValScores(rates["target"], rates["neutral"], divergence.first_token, divergence.sequence)


def test_scores_in_one_batch_are_those_of_each_edit_alone(
    llama: Model, asked: tuple[Questions, Questions, EvaluationConfig]
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
    llama: Model, asked: tuple[Questions, Questions, EvaluationConfig]
) -> None:
    objective = objective_of(llama, asked)
    (scores,) = objective([scaled(random_edit(), 0.0)])
    assert scores == objective.base_scores
    assert scores.behaviour_rate > 0


def test_only_points_that_another_beats_are_dropped(
    llama: Model, asked: tuple[Questions, Questions, EvaluationConfig]
) -> None:
    objective = objective_of(llama, asked)
    edits = [scaled(random_edit(), factor) for factor in (1.0, 0.0)]
    first, still = (objective.shortfall(edit, "suppress") for edit in edits)
    assert first != still
    # Four prompts tell nothing apart: a point that misses more stays where it costs less, and is scored as ever.
    cheap, dear = OnTrain(0.5, 0.1), OnTrain(0.5, 0.2)
    on_train = [cheap, dear] if first > still else [dear, cheap]
    assert objective.confirm(edits, on_train, "suppress") == objective(edits)
    dropped = objective.confirm(edits, on_train[::-1], "suppress")  # misses more and costs more
    assert [one is None for one in dropped] == [first > still, still > first]
    alike = [edits[0], scaled(random_edit(), 1.001)]
    as_often = objective.confirm(alike, [cheap, dear], "suppress")
    assert [one is None for one in as_often] == [False, True]  # as good for less
    better_on_train = objective.confirm(alike, [cheap, OnTrain(0.25, 0.2)], "suppress")
    assert None not in better_on_train  # val alone does not decide: the rule counts train prompts, too


ON_TRAIN = [OnTrain(0.5, 0.0), OnTrain(0.5, 0.5)]
"""Of two edits that miss as often, the dearer one last."""

Asked = list[tuple[int, list[int]]]
"""(candidate, prompt) of every response that was generated."""


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> tuple[Asked, list[Response]]:
    """What an objective asks the model to generate from now on, and what it gets."""
    asked: Asked = []
    said: list[Response] = []
    honest = objective.generate

    def counting(model: Model, rows: Any, *settings: Any, lanes: Lanes, **named: Any) -> list[Response]:
        asked.extend(zip(lanes.candidates, rows, strict=True))
        found = honest(model, rows, *settings, lanes=lanes, **named)
        said.extend(found)
        return found

    monkeypatch.setattr(objective, "generate", counting)
    return asked, said


def telling(
    model: Model, targets: list[list[int]], neutral: list[list[int]]
) -> tuple[Objective, Questions, list[Edit]]:
    """An objective whose marker is a word that an edit brings in at the first prompt, and nobody says elsewhere.

    The two edits are this one and one that does nothing.
    """
    target, config, edit = questions(targets), EvaluationConfig(max_new_tokens=8), random_edit()
    base = respond(model, {"target": target}, config)["target"]
    with preview(edit, hf_sites(model.hf)):
        edited = respond(model, {"target": target}, config)["target"]
    silent = [*base, *(response for row, response in zip(targets, edited, strict=True) if row != targets[0])]
    word = next(word for word in edited[0].text.split() if not any(word in response.text for response in silent))
    config = EvaluationConfig(markers=(word,), max_new_tokens=8, kl_tokens=4, batch_size=5)
    return objective_of(model, (target, questions(neutral), config)), target, [edit, scaled(edit, 0.0)]


def of_targets(asked: Asked, target: Questions, neutral: Questions) -> list[int]:
    """The candidates of target prompts."""
    return [c for c, row in asked if row in target.rows and row not in neutral.rows]


def test_what_a_shortfall_generated_is_not_generated_again(
    llama: Model,
    asked: tuple[Questions, Questions, EvaluationConfig],
    generated: tuple[Asked, list[Response]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(objective, "FIRST_LOOK", 2)
    edits, found = [scaled(random_edit(), factor) for factor in (0.0, 1.0)], objective_of(llama, asked)
    expected = objective_of(llama, asked).confirm(edits, ON_TRAIN, "suppress")
    assert of_targets(generated[0], *asked[:2]) == [0, 0, 1, 1, 0, 1]  # nothing known: both are asked, in two looks
    assert expected[0] is not None
    rate, broken = expected[0].behaviour_rate, expected[0].broken_rate
    assert 0 < rate < 1
    generated[0].clear()
    assert found.shortfall(edits[0], "suppress") == rate + broken
    assert found.shortfall(edits[0], "strengthen") == 1 - rate
    assert of_targets(generated[0], *asked[:2]) == [0, 0, 0]
    generated[0].clear()
    assert found.confirm(edits, ON_TRAIN, "suppress") == expected
    assert of_targets(generated[0], *asked[:2]) == [1, 1, 1]
    turned = found(edits[::-1])  # a look at a part is not taken for the whole
    for one, other in zip(turned, expected[::-1], strict=True):
        assert other is not None
        assert (one.behaviour_rate, one.spill_rate) == (other.behaviour_rate, other.spill_rate)
        # Other rows in a batch round otherwise on some processors: a few float32 eps of log-probabilities near 4.
        assert one.kl_sequence == pytest.approx(other.kl_sequence, abs=2e-6)


def test_a_shortfall_is_the_share_that_misses_the_goal(llama: Model, rows: list[list[int]]) -> None:
    found, _, (edit, _) = telling(llama, [rows[0], rows[4], rows[4]], rows[5:])
    assert found.shortfall(edit, "suppress") == pytest.approx(1 / 3)
    assert found.shortfall(edit, "strengthen") == pytest.approx(2 / 3)


@pytest.mark.parametrize("goal", ["suppress", "strengthen"])
def test_a_look_at_a_part_counts_every_prompt_once(
    llama: Model,
    rows: list[list[int]],
    generated: tuple[Asked, list[Response]],
    goal: Goal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Six prompts tell 0 of 6 from 6 of 6, but no first look at two of them does, also where all six are known."""
    found, target, edits = telling(llama, [rows[0]] * 6, rows[3:])
    monkeypatch.setattr(objective, "FIRST_LOOK", 2)
    found.shortfall(edits[0], goal)
    found.shortfall(edits[1], goal)
    generated[0].clear()
    seen: list[list[int]] = []
    honest = objective._undominated

    def looking(going: Any, shows: Any, *rest: Any) -> list[int]:
        seen.append([len(labels) for labels in shows])
        return honest(going, shows, *rest)

    monkeypatch.setattr(objective, "_undominated", looking)
    found.confirm(edits, ON_TRAIN[::-1], goal)
    assert seen == [[2, 2], [6, 6]]
    assert not of_targets(generated[0], target, questions(rows[3:]))


def test_a_point_is_dropped_where_another_does_clearly_better_at_no_larger_kl(
    llama: Model, rows: list[list[int]], generated: tuple[Asked, list[Response]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objective, "FIRST_LOOK", 6)
    found, target, edits = telling(llama, [rows[0]] * 9, rows[3:])
    scores = objective_of(llama, (target, questions(rows[3:]), found._base.config))(edits)
    assert [one.behaviour_rate for one in scores] == [1, 0]
    assert scores[0].kl_sequence > 0.01 > scores[1].kl_sequence
    generated[0].clear()
    beaten, kept = found.confirm(edits, ON_TRAIN[::-1], "suppress")
    assert beaten is None
    assert kept is not None
    assert kept.behaviour_rate == 0
    counts = [of_targets(generated[0], target, questions(rows[3:])).count(c) for c in (0, 1)]
    assert counts == [6, 9]  # a first look was enough
    assert not [row for c, row in generated[0] if c == 0 and row not in target.rows]  # and its spill is not asked
    # What it misses least costs most: neither beats the other.
    assert found.confirm(edits, ON_TRAIN[::-1], "strengthen") == scores


def test_a_look_drops_nothing_within_what_chance_explains() -> None:
    few, many = ([[True] * hits + [False] * 4, [False] * (hits + 4)] for hits in (2, 6))
    assert objective._undominated([0, 1], few, [0.5, 0.0]) == [0, 1]  # 2 of 6 against 0 of 6
    assert objective._undominated([0, 1], many, [0.5, 0.0]) == [1]  # 6 of 10 against 0 of 10
    assert objective._undominated([0, 1], many, [0.0, 0.5]) == [0, 1]  # for less


def test_only_neutral_prompts_whose_response_changes_are_generated_from(
    llama: Model, rows: list[list[int]], generated: tuple[Asked, list[Response]]
) -> None:
    neutral, config = questions(rows[1:]), EvaluationConfig(markers=("w1",), max_new_tokens=6, kl_tokens=2)
    edits = [scaled(random_edit(), factor) for factor in (0.0, 0.4, 1.0)]
    objective_of(llama, (questions(rows[:1]), neutral, config))(edits)
    base, expected = respond(llama, {"neutral": neutral}, config)["neutral"], []
    for c, edit in enumerate(edits):
        with preview(edit, hf_sites(llama.hf)), without_ties(llama):
            now = respond(llama, {"neutral": neutral}, config)["neutral"]
        expected += [(c, row) for row, one, other in zip(neutral.rows, base, now, strict=True) if one != other]
    assert sorted(pair for pair in generated[0] if pair[1] in neutral.rows) == sorted(expected)
    assert {c for c, _ in expected} == {1, 2}
    assert 0 < [c for c, _ in expected].count(1) < len(neutral.rows)


def test_an_unchanged_response_has_the_label_that_the_base_was_given(
    llama: Model, asked: tuple[Questions, Questions, EvaluationConfig]
) -> None:
    found = objective_of(llama, asked)
    labels = found._base.shows["neutral"]
    labels[:] = [True, *[False] * (len(labels) - 1)]  # whatever it says
    assert found([scaled(random_edit(), 0.0)])[0].spill_rate == 1 / len(labels)


def test_a_detector_is_shown_every_response_with_its_own_prompt(llama: Model, rows: list[list[int]]) -> None:
    target, neutral = questions(rows[:4]), questions(rows[4:])
    config, detector = EvaluationConfig(max_new_tokens=4, kl_tokens=2, batch_size=3), ByPrompt(target, neutral)
    base = Baseline(llama, {"target": target, "neutral": neutral}, config, detector)
    edits = [scaled(random_edit(seed=seed), 2.0) for seed in (0, 1)]
    for scores in Objective(base, hf_sites(llama.hf))(edits):
        assert (scores.behaviour_rate, scores.spill_rate) == (1 / 4, pytest.approx(1 / 3))
        assert scores.kl_sequence > 0.01  # neutral responses change, and are asked about
    assert base.shows == {"target": [False, True, False, False], "neutral": [False, True, False]}


def test_a_response_is_generated_no_further_than_its_label(
    llama: Model, asked: tuple[Questions, Questions, EvaluationConfig], generated: tuple[Asked, list[Response]]
) -> None:
    behaviour = marker_set(asked[2].markers)
    objective_of(llama, asked)([scaled(random_edit(), 0.0)])
    lengths = {behaviour.found_in(r.text): len(r.tokens) for r in generated[1]}  # the marker is an early word
    assert lengths[True] < lengths[False] == 8


def test_layers_that_no_edit_touches_are_run_once_and_only_where_the_model_allows(
    llama: Model, asked: tuple[Questions, Questions, EvaluationConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    honest = BaseContinuations.from_layer

    def counting(self: BaseContinuations, layer: int) -> BaseContinuations:
        started.append(layer)
        return honest(self, layer)

    monkeypatch.setattr(BaseContinuations, "from_layer", counting)
    found = objective_of(llama, asked)
    late, later, early = edit_from(1), edit_from(2), edit_from(0)
    resumed = found([later, late])
    assert started == [1]
    for edits in ([later], [later, early]):
        found(edits)
        assert started == [1]  # one edit, or the first layer: nothing to gain
    monkeypatch.setattr(objective, "resumes", lambda *model_batch_layer: False)
    for one, other in zip(found([later, late]), resumed, strict=True):
        assert (one.behaviour_rate, one.spill_rate) == (other.behaviour_rate, other.spill_rate)
        assert one.kl_sequence == pytest.approx(other.kl_sequence, rel=1e-4, abs=1e-7)
    assert started == [1]
    assert resumed[1].kl_sequence != pytest.approx(resumed[0].kl_sequence, rel=0.01)  # layer 1 counts
