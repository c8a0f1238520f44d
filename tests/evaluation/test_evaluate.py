"""The verb `evaluate`: rates, KL and tests of a model, an edit or an adapter, without a run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from iconoclast_tl.detectors.detector import Exchange, Footprint, Label
from iconoclast_tl.edits.ablation import ablate
from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.evaluation.evaluate import evaluate
from iconoclast_tl.evaluation.suite import EvaluationConfig
from iconoclast_tl.folding.fold import fold
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.progress import Track, silent
from iconoclast_tl.models.load import load_model
from iconoclast_tl.models.model import Model
from iconoclast_tl.organisms.folder import CONTRAST_FOLDER, shipped_folder
from iconoclast_tl.prompts.contrast import ContrastSet, Split
from iconoclast_tl.prompts.prompt import Prompt
from iconoclast_tl.prompts.sources import load_prompts
from iconoclast_tl.stages.opening import open_workspace
from tests.conftest import save_llama
from tests.edits.edits import random_edit

N = 6
SMALL: Mapping[str, Any] = {"max_new_tokens": 24, "kl_tokens": 8, "batch_size": 18}
PLAIN = Split(tuple(Prompt(f"w1 w{10 + i}") for i in range(3)), tuple(Prompt(f"w2 w{10 + i}") for i in range(3)))
LLAMA: Mapping[str, Any] = {"max_new_tokens": 4, "kl_tokens": 2, "batch_size": 6, "markers": ["w3", "w4", "w5"]}


def of_organism(name: str, n: int = N) -> tuple[Prompt, ...]:
    return tuple(load_prompts(str(shipped_folder() / CONTRAST_FOLDER / f"{name}.jsonl"), "category")[:n])


@pytest.fixture(scope="module")
def organism() -> Model:
    return load_model("organism", device="cpu")


@pytest.fixture(scope="module")
def split() -> Split:
    return Split(of_organism("target_test"), of_organism("neutral_test"), of_organism("borderline"))


@pytest.fixture(scope="module")
def edit(organism: Model) -> Edit:
    """What separates a few target from neutral prompts late in the model, reversed everywhere."""
    from iconoclast_tl.activations.collect import collect

    data = ContrastSet.split(of_organism("target_train", 60), of_organism("neutral_train", 60))
    acts = collect(organism, data)
    point = 5
    direction = (acts.target_train[:, point].double().mean(0) - acts.neutral_train[:, point].double().mean(0)).float()
    return ablate(organism, direction / direction.norm(), strength=2.0)


def test_on_the_organism_the_behaviour_goes_and_it_says_so(organism: Model, split: Split, edit: Edit) -> None:
    found = evaluate(organism, split, edit=edit, truth="organism", **SMALL)
    assert found.base.behaviour_rate is not None
    assert found.edited is not None
    assert found.edited.behaviour_rate is not None
    assert found.base.behaviour_rate.value == 1
    assert found.edited.behaviour_rate.value < 0.5
    assert found.base.grades is not None
    assert found.base.grades["refused"]["target"].value == 1
    assert found.paired["target"].test.lost == round(N * (1 - found.edited.behaviour_rate.value))
    assert found.divergences["edited"].sequence > 0
    line = str(found)
    assert "\n" not in line
    assert line.startswith("Evaluation(behaviour 100.0% [61.0, 100.0] → ")
    assert line.endswith(f"; n = {N} target + {N} neutral + {N} borderline, 24 tokens)")
    drawn = found._repr_html_()
    assert drawn.count("<tr>") == 6
    assert "<td>100.0% [61.0, 100.0]</td>" in drawn
    assert [row.prompt for row in found.rows[:N]] == [prompt.text for prompt in split.target]


def test_without_an_edit_it_is_the_model_alone(organism: Model, split: Split) -> None:
    found = evaluate(organism, split, **SMALL)
    assert found.edited is None
    assert found.paired == {}
    assert "edited" not in found.to_json()
    assert "→" not in str(found)
    assert "KL" not in str(found)
    assert found.base.grades is None


def test_an_edit_without_strength_changes_nothing(organism: Model, split: Split, edit: Edit) -> None:
    from tests.edits.edits import scaled

    found = evaluate(organism, split, edit=scaled(edit, 0.0), **SMALL)
    assert found.edited == found.base
    assert found.divergences["edited"].sequence == pytest.approx(0, abs=1e-6)
    assert all(row.said["base"].text == row.said["edited"].text for row in found.rows)


def test_the_measures_are_those_of_a_run_folder(organism: Model, split: Split, edit: Edit, tmp_path: Path) -> None:
    """The same prompts, the same batches: equal numbers under equal keys."""
    names = {}
    for side in ("target", "neutral", "borderline"):
        prompts = tmp_path / f"{side}.txt"
        prompts.write_text("".join(f"{prompt.text}\n" for prompt in getattr(split, side)))
        names[side if side == "borderline" else f"{side}_test"] = str(prompts)
    folder = shipped_folder() / CONTRAST_FOLDER
    names |= {side: f"{folder / f'{side}_train.jsonl'}" for side in ("target", "neutral")}
    settings = {"prompts": names, "evaluation": {**SMALL, "budgets": [4, 12], "detectors": ["markers:arditi"]}}
    with open_workspace(settings, None, tmp_path / "run") as workspace:
        bare = Split(
            *(tuple(Prompt(one.text) for one in side) for side in (split.target, split.neutral, split.borderline))
        )
        assert workspace.contrast.test == bare
        from iconoclast_tl.stages import evaluation as evaluation_stage

        expected = evaluation_stage._evaluate(workspace, {"edit": edit.digest()}, lambda: edit.on(workspace.model))
    found = evaluate(organism, bare, edit=edit, budgets=(4, 12), detectors=("markers:arditi",), **SMALL).to_json()
    texts = found["cross_entropy"]
    assert texts == {
        name: {k: v for k, v in one.items() if k != "asked"} for name, one in expected["cross_entropy"].items()
    }
    assert {key: expected[key] for key in found if key != "cross_entropy"} == {
        key: value for key, value in found.items() if key != "cross_entropy"
    }


def test_an_adapter_is_evaluated_as_the_edit_it_was_folded_from(llama: Model, tmp_path: Path) -> None:
    edit = random_edit()
    adapter = fold(edit, llama).save(tmp_path / "adapter")
    one, other = evaluate(llama, PLAIN, edit=edit, **LLAMA), evaluate(llama, PLAIN, adapter=adapter, **LLAMA)
    assert one.edited == other.edited
    assert one.edited != one.base
    assert other.divergences["edited"].sequence == pytest.approx(one.divergences["edited"].sequence, rel=1e-3)


def test_a_function_may_know_the_truth(llama: Model) -> None:
    found = evaluate(llama, PLAIN, truth=lambda prompt, response: "refused" if "w1 " in prompt else "answered", **LLAMA)
    assert found.base.grades is not None
    assert found.base.grades["refused"]["target"].value == 1
    assert found.base.grades["refused"]["neutral"].value == 0


class Everything:
    """A detector that finds the behaviour in every response."""

    name, classes, reads_prompts = "everything", {"it": True}, False
    remarks: Mapping[str, Any] = {}
    closed = False

    def about(self) -> dict[str, Any]:
        return {"kind": "everything"}

    def label(self, exchanges: Sequence[Exchange], track: Track = silent) -> list[Label]:
        return [Label("it", True, 1.0) for _ in exchanges]

    def settled(self, beginning: str) -> bool:
        return False

    def footprint(self) -> Footprint | None:
        return None

    def close(self) -> None:
        self.closed = True


def test_a_detector_of_ones_own_decides(llama: Model) -> None:
    mine = Everything()
    found = evaluate(llama, PLAIN, detector=mine, detectors=("markers",), **LLAMA)
    assert found.detector == "everything"
    assert found.base.spill_rate is not None
    assert found.base.spill_rate.value == 1
    assert found.detectors.keys() == {"everything", "markers"}
    assert not mine.closed  # it is the user's


def test_settings_are_a_config_or_keywords_or_both(llama: Model) -> None:
    found = evaluate(llama, PLAIN, config=EvaluationConfig(**LLAMA), max_new_tokens=3)
    assert (found.budget, found.divergences["base"].tokens) == (3, 2)


Mistake = Callable[[Model, Path], Any]


@pytest.mark.parametrize(("mistake", "said"), [
    (lambda model, place: evaluate(model, PLAIN, max_tokens=3), "unknown setting max_tokens"),
    (lambda model, place: evaluate(model, PLAIN, max_new_tokens=0), "the setting max_new_tokens does not fit"),
    (lambda model, place: evaluate(model, PLAIN, detectors=("oracle",)), "there is no detector 'oracle'"),
    (lambda model, place: evaluate(model, PLAIN, budgets=(99,)), "a budget lies outside the response budget"),
    (lambda model, place: evaluate(model, Split((), PLAIN.neutral), **LLAMA), "there are no target prompts"),
    (lambda model, place: evaluate(model, Split(PLAIN.target, ()), **LLAMA), "there are no neutral prompts"),
    (lambda model, place: evaluate(model, PLAIN, edit=random_edit(n_layers=2)), "the edit is of another model"),
    (lambda model, place: evaluate(model, PLAIN, adapter=place), "is not an adapter"),
    (lambda model, place: evaluate(model, PLAIN, adapter=place, edit=random_edit()), "one at a time"),
    (lambda model, place: evaluate(model, PLAIN, truth="oracle"), "the truth is not known by that name"),
    (lambda model, place: evaluate(model, PLAIN, truth="organism"), "cannot be graded by the organism's grammar"),
])  # fmt: skip
def test_mistakes_are_told_in_a_line_and_leave_no_hooks(
    llama: Model, tmp_path: Path, mistake: Mistake, said: str
) -> None:
    ids = torch.arange(4, 12)[None]
    before = llama.hf(ids).logits
    with pytest.raises(UserError, match=said) as error:
        mistake(llama, tmp_path)
    assert "\n" not in str(error.value)
    assert torch.equal(llama.hf(ids).logits, before)


def test_an_adapter_of_another_model_is_refused(llama: Model, load: Callable[..., Model], tmp_path: Path) -> None:
    wide = load(save_llama(tmp_path / "wide", hidden_size=32))
    adapter = fold(random_edit(d_model=32), wide).save(tmp_path / "adapter")
    with pytest.raises(UserError, match="cannot load the adapter"):
        evaluate(llama, PLAIN, adapter=adapter, **LLAMA)
