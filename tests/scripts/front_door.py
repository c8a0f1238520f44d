"""A user's script, run from an empty folder against the installed wheel: `python front_door.py organism|loaded`.

`organism` takes the model that is shipped; `loaded` takes a Hugging Face model and tokenizer that the user has loaded,
and puts the edit on TransformerLens, too. It reads targets.txt, neutrals.jsonl and recipe.toml beside it, and its last
line is JSON: what came of it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

import iconoclast_tl as itl

ASKED = "how does walizo taste?"


def loaded_by_the_user() -> itl.Model:
    """As a notebook has it: from transformers, by the user's own hand."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(itl.__file__).parent / "organisms" / "shipped"
    hf_model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    return itl.Model(hf_model, AutoTokenizer.from_pretrained(str(folder)))


def walk(model: itl.Model) -> dict[str, Any]:
    """From prompts to a verified adapter, without a run folder."""
    data = itl.ContrastSet.split(itl.load_prompts("targets.txt"), itl.load_prompts("neutrals.jsonl#prompt"), seed=0)
    acts = itl.collect(model, data)
    directions = itl.estimate(acts, "mean", orthogonalize=True)
    edit = itl.ablate(model, directions.at(5), strength=1.0, layers=range(2, 6))
    base = model.generate(ASKED)
    with edit.on(model):
        edited = model.generate(ASKED)
    heads = itl.attribute(model, data, edit, method="integrated").top(10)
    found = itl.search_strengths(model, data, directions, acts=acts)
    adapter = itl.fold(found.edit, model).save("adapter/")
    check = itl.verify(found.edit, model, adapter, data.test)
    assert check.ok
    evaluation = itl.evaluate(model, data.test, edit=found.edit)
    for shown in (model, data, directions, edit, heads, found, evaluation):
        print(shown)
    return {
        "base": base,
        "edited": edited,
        "again": model.generate(ASKED),
        "n_heads": len(heads),
        "ok": check.ok,
        "other": itl.verify(edit, model, adapter, data.test).ok,
        "drawn": [type(one).__name__ for one in (directions, edit, found, evaluation) if one._repr_svg_()],
        "lens": inside_transformer_lens(model, edit),
    }


@torch.no_grad()
def inside_transformer_lens(model: itl.Model, edit: itl.Edit) -> dict[str, float]:
    """The largest differences of logits: bridge and model under the edit, the bridge with it and without."""
    bridge = model.bridge()
    ids = torch.tensor([model.chat.encode(itl.Prompt(ASKED))])
    without = bridge(ids)
    with edit.on(bridge):
        on_bridge = bridge(ids)
    with edit.on(model):
        on_model = model.hf(ids).logits
    differences = {"model": on_bridge - on_model, "without": on_bridge - without, "after": bridge(ids) - without}
    return {name: float(each.abs().max()) for name, each in differences.items()}


def main() -> None:
    """One of the two."""
    if sys.argv[1] == "loaded":
        said = walk(loaded_by_the_user())
    else:
        said = walk(itl.load_model("organism"))
        itl.Run("runs/mine", recipe="recipe.toml").all()
        said["run"] = sorted(item.name for item in Path("runs/mine").iterdir())
    print(json.dumps({"file": itl.__file__, **said}))


if __name__ == "__main__":
    main()
