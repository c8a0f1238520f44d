"""A user's script for a type checker; never run. Names have types of their own, and none is `Any`."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

import torch

import iconoclast_tl as itl


def walk(model: itl.Model) -> str:
    """What the front door promises, with the types that it promises."""
    assert_type(itl.load_model("organism"), itl.Model)
    data = itl.ContrastSet.split(itl.load_prompts("targets.txt"), ["a neutral prompt"], seed=0)
    assert_type(data, itl.ContrastSet)
    acts = itl.collect(model, data, to=Path("activations.safetensors"))
    assert_type(acts, itl.Activations)
    directions = itl.estimate(acts, "mean", orthogonalize=True)
    assert_type(directions, itl.Directions)
    assert_type(directions.at(5), torch.Tensor)
    edit = itl.ablate(model, directions.at(5), strength=1.0, layers=range(2, 6))
    assert_type(edit, itl.Edit)
    with edit.on(model):
        assert_type(model.generate("one"), str)
        assert_type(model.generate(["one", "two"]), list[str])
    itl.attribute(model, data, edit, method="integrated").top(10)
    found = itl.search_strengths(model, data, directions, acts=acts)
    assert_type(found.edit, itl.Edit)
    adapter = itl.fold(found.edit, model).save("adapter/")
    assert_type(itl.verify(found.edit, model, adapter, data.test).ok, bool)
    itl.evaluate(model, data.test, edit=found.edit)
    itl.Run("runs/mine", recipe="recipe.toml").all()
    return itl.__version__


def mistakes() -> None:
    """Own errors are ValueErrors."""
    try:
        itl.load_model("nowhere")
    except itl.UserError as error:
        wrong: ValueError = error
        print(wrong)
