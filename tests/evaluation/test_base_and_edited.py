"""A changed model beside the base: what is not generated again is what generating would have given."""

from __future__ import annotations

from typing import Any

import pytest

from iconoclast_tl.architecture.hook_points import hf_sites
from iconoclast_tl.detectors.registry import make_detector
from iconoclast_tl.edits.hooks import preview
from iconoclast_tl.evaluation import base_and_edited
from iconoclast_tl.evaluation.base_and_edited import ask_base_and_edited, side_by_side
from iconoclast_tl.evaluation.baseline import Baseline
from iconoclast_tl.evaluation.suite import EvaluationConfig, respond
from iconoclast_tl.models.model import Model
from tests.edits.edits import random_edit, scaled
from tests.execution.ties import without_ties
from tests.search.test_objective import questions

CONFIG = EvaluationConfig(markers=("w1",), max_new_tokens=6, kl_tokens=3, batch_size=4)


@pytest.fixture
def base(llama: Model, rows: list[list[int]]) -> Baseline:
    """Every set has short prompts and long ones."""
    sets = {"target": questions(rows[:4]), "neutral": questions(rows), "borderline": questions(rows[::-1])}
    return Baseline(llama, sets, CONFIG, make_detector(CONFIG, CONFIG.detector))


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The prompts that a comparison generates from."""
    asked: list[list[int]] = []
    honest = base_and_edited.generate

    def counting(model: Model, rows: Any, *settings: Any) -> Any:
        asked.extend(rows)
        return honest(model, rows, *settings)

    monkeypatch.setattr(base_and_edited, "generate", counting)
    return asked


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0])
def test_only_what_changes_is_generated_and_the_responses_are_those_of_generating_all(
    base: Baseline, generated: list[list[int]], factor: float
) -> None:
    before = {name: list(said) for name, said in base.responses.items()}
    sites = hf_sites(base.model.hf)
    compared = ask_base_and_edited(base, lambda: preview(scaled(random_edit(), factor), sites))
    assert base.responses == compared.responses["base"] == before
    asked = [list(row) for row in generated]
    with preview(scaled(random_edit(), factor), sites):
        divergence = base.continuations.divergence()
        with without_ties(base.model):
            everything = respond(base.model, base.suite, CONFIG)
    assert compared.responses["edited"] == everything
    changed = {
        name: [row for row, old, new in zip(base.suite[name].rows, before[name], said, strict=True) if old != new]
        for name, said in everything.items()
    }
    assert asked == [*base.suite["target"].rows, *changed["neutral"], *changed["borderline"]]
    counts = {0.0: [0], 0.4: range(1, 7), 1.0: range(1, 8)}[factor]  # of 7: none, some but not all, some
    assert len(changed["neutral"]) in counts
    assert len(changed["borderline"]) in counts
    found = compared.divergences["edited"]
    assert found == divergence
    assert (found.sequence > 1e-5) == (factor > 0)
    assert compared.divergences["base"].sequence == 0
    assert compared.measured["edited"].spill_rate.value == sum("w1" in r.text for r in everything["neutral"]) / 7
    assert not [m for m in base.model.hf.modules() if m._forward_hooks or m._forward_pre_hooks]


def test_each_model_has_the_labels_of_its_own_responses(llama: Model, rows: list[list[int]]) -> None:
    """By a word that the edit takes away or brings in."""
    suite, sites = {"target": questions(rows[:4]), "neutral": questions(rows)}, hf_sites(llama.hf)
    before = respond(llama, suite, CONFIG)
    with preview(random_edit(), sites):
        after = respond(llama, suite, CONFIG)
    texts = [[one.text for said in found.values() for one in said] for found in (before, after)]
    words = sorted({word for text in (*texts[0][:4], *texts[1][:4]) for word in text.split()})
    word = next(word for word in words if [word in t for t in texts[0][:4]] != [word in t for t in texts[1][:4]])
    config = CONFIG.model_copy(update={"markers": (word,)})
    compared = ask_base_and_edited(
        Baseline(llama, suite, config, make_detector(config, "markers")), lambda: preview(random_edit(), sites)
    )
    wanted = [[word in text for text in found] for found in texts]
    for model, labels in zip(("base", "edited"), wanted, strict=True):
        assert [row.said[model].labels["markers"].shows for row in compared.rows] == labels
        assert compared.measured[model].behaviour_rate.value == sum(labels[:4]) / 4


def test_without_a_change_there_is_only_the_base(base: Baseline, generated: list[list[int]]) -> None:
    compared = ask_base_and_edited(base, None)
    assert compared.responses == {"base": base.responses}
    assert compared.to_json().keys() == {"base"}
    assert generated == []


def test_rows_and_examples_put_each_prompts_responses_side_by_side(base: Baseline) -> None:
    sites = hf_sites(base.model.hf)
    compared = ask_base_and_edited(
        base, lambda: preview(random_edit(), sites), lambda prompt, response: f"{prompt}: {response}"
    )
    rows = iter(compared.transcript())
    for name, asked in base.suite.items():
        for i, prompt in enumerate(asked.prompts):
            row = next(rows)
            assert (row.set, row.id, row.prompt) == (name, prompt.id, prompt.text)
            for model in ("base", "edited"):
                response = compared.responses[model][name][i]
                said = row.said[model]
                assert said.text == response.text
                assert said.labels == {}  # who gives them may need the room that the model takes
                assert said.grade == f"{prompt.text}: {response.text}"
                assert len(said.ends) == len(response.tokens)
                decoded = (
                    base.model.tokenizer.decode(response.tokens[:n], skip_special_tokens=True) for n in range(1, 7)
                )
                assert all(said.within(n) == text.strip() for n, text in enumerate(decoded, 1))
                assert ("kl_sequence" in said.numbers) == (model == "edited" and name == "neutral")
    assert next(rows, None) is None
    for labelled, plain in zip(compared.rows, compared.transcript(), strict=True):
        for model, said in labelled.said.items():
            assert said.labels["markers"].shows == ("w1" in said.text)
            assert said.text == plain.said[model].text
    examples = side_by_side(compared, 5)
    assert [name for name, *_ in examples] == ["target"] * 4 + ["neutral"] * 5 + ["borderline"] * 5
    shown = [compared.responses[model]["neutral"][2].text for model in ("base", "edited")]
    assert examples[6] == ("neutral", base.suite["neutral"].prompts[2].text, *shown)
    assert shown[0] != shown[1]
    kept = [row.said["edited"].numbers["kl_sequence"] for row in compared.rows if row.set == "neutral"]
    assert sum(kept) / len(kept) == pytest.approx(compared.divergences["edited"].sequence, rel=1e-6)
    assert min(kept) < max(kept)
