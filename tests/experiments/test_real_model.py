"""The whole way on a real chat model with few prompts: load its GGUF, search, fold, verify, and ask it again."""

from __future__ import annotations

from pathlib import Path

import pytest

import iconoclast_tl as itl
from experiments.real.model import NotFetchedError, ensure_model
from experiments.real.prompts import contrast_set
from iconoclast_tl.evaluation.suite import EvaluationConfig
from iconoclast_tl.prompts.contrast import Split

FEW = {"train": 24, "val": 12, "test": 12}


@pytest.fixture(scope="module")
def file() -> Path:
    """The model, out of the user's cache or fetched into it."""
    try:
        return ensure_model()
    except NotFetchedError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def data() -> itl.ContrastSet:
    """A few prompts of every split, all frames among them."""
    prompts = contrast_set()

    def some(side: str, split: str) -> tuple[itl.Prompt, ...]:
        every = prompts[f"{side}_{split}"]
        return tuple(itl.Prompt(text) for text in every[:: len(every) // FEW[split]][: FEW[split]])

    return itl.ContrastSet(**{split: Split(some("target", split), some("neutral", split)) for split in FEW})


def test_it_stops_declining_and_the_adapter_does_what_was_previewed(
    file: Path, data: itl.ContrastSet, tmp_path: Path
) -> None:
    model = itl.load_model(str(file))
    acts = itl.collect(model, data)
    directions = itl.estimate(acts, "mean", orthogonalize=True)
    evaluation = EvaluationConfig(max_new_tokens=32)
    found = itl.search_strengths(
        model,
        data,
        directions,
        acts=acts,
        evaluation=evaluation,
        space={"points": (0.5, 0.5)},
        gradient={"prompts": 12, "batch_size": 6, "prices": (60.0, 20.0, 2), "survivors": 1, "refine_steps": 0},
    )
    adapter = itl.fold(found.edit, model).save(tmp_path / "adapter")
    fidelity = itl.verify(found.edit, model, adapter, data.test)
    assert fidelity.ok
    assert fidelity.preview_vs_base > 100 * fidelity.preview_vs_adapter.max_abs_logit_diff
    asked = itl.evaluate(model, data.test, edit=found.edit, config=evaluation)
    base, edited = asked.base, asked.edited
    assert edited is not None
    assert base.behaviour_rate.value >= 0.6
    assert edited.behaviour_rate.value <= base.behaviour_rate.value - 0.4
    assert edited.spill_rate.value <= 0.1
