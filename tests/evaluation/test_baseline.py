"""What the base says is asked once, whoever wants it."""

from __future__ import annotations

from typing import Any

import pytest

from iconoclast_tl.architecture.hook_points import hf_sites
from iconoclast_tl.detectors.registry import make_detector
from iconoclast_tl.edits.hooks import preview
from iconoclast_tl.evaluation import baseline
from iconoclast_tl.evaluation.base_and_edited import ask_base_and_edited
from iconoclast_tl.evaluation.baseline import Baseline
from iconoclast_tl.evaluation.suite import EvaluationConfig
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.contrast import Split
from iconoclast_tl.prompts.prompt import Prompt
from iconoclast_tl.search.objective import Objective
from tests.edits.edits import random_edit
from tests.search.test_objective import questions


def make_baseline(model: Model, rows: list[list[int]], **settings: Any) -> Baseline:
    config = EvaluationConfig(**{"max_new_tokens": 4, "kl_tokens": 2, **settings})
    suite = {"target": questions(rows[:3]), "neutral": questions(rows[3:])}
    return Baseline(model, suite, config, make_detector(config, config.detector))


def test_all_that_compare_with_the_base_share_one_asking(
    llama: Model, rows: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def count(name: str) -> None:
        honest = getattr(baseline, name)

        def counting(*args: Any) -> Any:
            asked.append(name)
            return honest(*args)

        monkeypatch.setattr(baseline, name, counting)

    count("respond")
    count("BaseContinuations")
    base, sites = make_baseline(llama, rows), hf_sites(llama.hf)
    assert asked == []  # nothing is asked before it is wanted
    for _ in range(2):
        objective = Objective(base, sites)
        assert objective.base_scores.kl_sequence == 0
        objective([random_edit()])
        ask_base_and_edited(base, lambda: preview(random_edit(), sites))
    assert asked == ["respond", "BaseContinuations"]
    assert base.shows is base.shows
    other = make_baseline(llama, rows)
    assert other.responses == base.responses
    assert asked.count("respond") == 2  # another baseline asks for itself


def test_labels_are_those_of_the_responses(llama: Model, rows: list[list[int]]) -> None:
    word = make_baseline(llama, rows).responses["target"][0].text.split()[0]
    base = make_baseline(llama, rows, markers=(word,))
    assert base.shows["target"][0]
    assert not all(base.shows["target"] + base.shows["neutral"])
    for name, said in base.responses.items():
        assert base.shows[name] == [word in response.text for response in said]


def test_one_target_prompt_that_shows_the_behaviour_is_enough(llama: Model, rows: list[list[int]]) -> None:
    said = {name: [r.text for r in mine] for name, mine in make_baseline(llama, rows).responses.items()}

    def only(within: list[str], without: list[str]) -> str:
        """A word of the first list that the second does not hold."""
        return next(word for text in within for word in text.split() if not any(word in other for other in without))

    one = make_baseline(llama, rows, markers=(only(said["target"][:1], said["target"][1:] + said["neutral"]),))
    assert one.shows == {"target": [True, False, False], "neutral": [False] * 4}
    one.require_shown("val")
    elsewhere = make_baseline(llama, rows, markers=(only(said["neutral"], said["target"]),))
    assert any(elsewhere.shows["neutral"])
    with pytest.raises(UserError, match="never shows the behaviour: got 0 of 3 val target prompts, 4 tokens"):
        elsewhere.require_shown("val")


def test_the_divergence_goes_no_further_than_the_responses(llama: Model, rows: list[list[int]]) -> None:
    assert make_baseline(llama, rows).continuations.divergence().tokens == 2
    assert make_baseline(llama, rows, kl_tokens=9).continuations.divergence().tokens == 4


def a_split(n: int = 5) -> Split:
    target, neutral = (tuple(Prompt(f"w{row + start} w{row}") for row in range(n)) for start in (10, 20))
    return Split(target, neutral, (Prompt("w30"),))


def test_a_baseline_of_a_split_encodes_its_prompts_and_measures_the_batch_size(llama: Model) -> None:
    config = EvaluationConfig(max_new_tokens=4, kl_tokens=2, markers=("w9",))
    base = baseline.baseline(llama, a_split(), config, at_most=3)
    assert {name: len(questions.rows) for name, questions in base.suite.items()} == {
        "target": 3,
        "neutral": 3,
        "borderline": 1,
    }
    assert base.suite["target"].rows[0] == llama.chat.encode(Prompt("w10 w0"))
    assert isinstance(base.config.batch_size, int)  # `auto` is measured
    assert base.config.model_copy(update={"batch_size": "auto"}) == config
    assert base.detector.name == "markers"
    given = make_detector(config, "markers:refusal")
    assert baseline.baseline(llama, a_split(), config, given).detector is given


def test_a_baseline_needs_prompts_that_fit(llama: Model) -> None:
    with pytest.raises(UserError, match="there are no neutral prompts in this split"):
        baseline.baseline(llama, Split(a_split().target, ()))
    with pytest.raises(UserError, match="longer than the model's context"):
        baseline.baseline(llama, a_split(), EvaluationConfig(max_new_tokens=64))
