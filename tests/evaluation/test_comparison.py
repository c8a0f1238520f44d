"""A changed model beside the base: what is not generated again is what generating would have given."""

from __future__ import annotations

from typing import Any

import pytest

from iconoclast_tl.edits.hooks import preview
from iconoclast_tl.evaluation import comparison
from iconoclast_tl.evaluation.baseline import Baseline
from iconoclast_tl.evaluation.comparison import compare, response_rows, side_by_side
from iconoclast_tl.evaluation.suite import EvaluationConfig, respond
from iconoclast_tl.models.hook_points import hf_sites
from iconoclast_tl.models.loading import LoadedModel
from tests.edits.edits import random_edit, scaled
from tests.search.test_objective import questions

CONFIG = EvaluationConfig(markers=("w1",), max_new_tokens=6, kl_tokens=3, batch_size=4)


@pytest.fixture
def base(llama: LoadedModel, rows: list[list[int]]) -> Baseline:
    """Every set has short prompts and long ones."""
    sets = {"target": questions(rows[:4]), "neutral": questions(rows), "borderline": questions(rows[::-1])}
    return Baseline(llama, sets, CONFIG)


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The prompts that a comparison generates from."""
    asked: list[list[int]] = []
    honest = comparison.generate

    def counting(model: LoadedModel, rows: Any, *settings: Any) -> Any:
        asked.extend(rows)
        return honest(model, rows, *settings)

    monkeypatch.setattr(comparison, "generate", counting)
    return asked


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0])
def test_only_what_changes_is_generated_and_the_responses_are_those_of_generating_all(
    base: Baseline, generated: list[list[int]], factor: float
) -> None:
    before = {name: list(said) for name, said in base.responses.items()}
    sites = hf_sites(base.model.hf)
    compared = compare(base, lambda: preview(scaled(random_edit(), factor), sites))
    assert base.responses == compared.responses["base"] == before
    asked = [list(row) for row in generated]
    with preview(scaled(random_edit(), factor), sites):
        everything, divergence = respond(base.model, base.suite, CONFIG), base.continuations.divergence()
    assert compared.responses["edited"] == everything
    changed = {
        name: [row for row, old, new in zip(base.suite[name].rows, before[name], said, strict=True) if old != new]
        for name, said in everything.items()
    }
    assert asked == [*base.suite["target"].rows, *changed["neutral"], *changed["borderline"]]
    counts = {0.0: [0], 0.3: range(1, 7), 1.0: range(1, 8)}[factor]  # of 7: none, some but not all, some
    assert len(changed["neutral"]) in counts
    assert len(changed["borderline"]) in counts
    found = compared.measured["edited"].divergence
    assert found == divergence
    assert (found.sequence > 1e-5) == (factor > 0)
    assert compared.measured["base"].divergence.sequence == 0
    assert compared.measured["edited"].spill_rate.value == sum("w1" in r.text for r in everything["neutral"]) / 7
    assert not [m for m in base.model.hf.modules() if m._forward_hooks or m._forward_pre_hooks]


def test_without_a_change_there_is_only_the_base(base: Baseline, generated: list[list[int]]) -> None:
    compared = compare(base, None)
    assert compared.responses == {"base": base.responses}
    assert compared.to_json().keys() == {"base"}
    assert generated == []


def test_rows_and_examples_put_each_prompts_responses_side_by_side(base: Baseline) -> None:
    sites = hf_sites(base.model.hf)
    compared = compare(base, lambda: preview(random_edit(), sites), lambda prompt, response: f"{prompt}: {response}")
    rows = iter(response_rows(compared, CONFIG, lambda prompt, response: f"{prompt}: {response}"))
    for name, asked in base.suite.items():
        for i, prompt in enumerate(asked.prompts):
            row = next(rows)
            assert (row["set"], row["id"]) == (name, prompt.id)
            for model in ("base", "edited"):
                response = compared.responses[model][name][i]
                assert row[model]["text"] == response.text
                assert row[model]["behaviour"] == ("w1" in response.text)
                assert row[model]["verdict"] == f"{prompt.text}: {response.text}"
    assert next(rows, None) is None
    examples = side_by_side(compared, 5)
    assert [name for name, *_ in examples] == ["target"] * 4 + ["neutral"] * 5 + ["borderline"] * 5
    said = [compared.responses[model]["neutral"][2].text for model in ("base", "edited")]
    assert examples[6] == ("neutral", base.suite["neutral"].prompts[2].text, *said)
    assert said[0] != said[1]
