"""The head by itself gives the model's logits, whatever the model does to them afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from iconoclast_tl.execution import head
from iconoclast_tl.execution.head import final_states, head_logits, is_separate
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.tokens import Tokens, left_pad
from tests.architectures import save_architecture


def inputs_of(model: Model, rows: list[Tokens]) -> dict[str, Any]:
    return {**model.inputs(left_pad(rows, 0)), "use_cache": False}


@torch.no_grad()
# Gemma caps its logits, Granite scales them.
@pytest.mark.parametrize("name", ["Llama, tied", "Gemma 2", "Granite", "GPT-2", "Mixtral"])
def test_the_head_on_final_states_gives_the_logits(
    load: Callable[..., Model], tmp_path: Path, rows: list[Tokens], name: str
) -> None:
    save_architecture(tmp_path / "model", name)
    model = load(tmp_path / "model")
    inputs = inputs_of(model, rows)
    expected = model.hf(**inputs, logits_to_keep=3).logits
    states = final_states(model, inputs, 3)
    assert is_separate(model)
    assert states.shape == (len(rows), 3, model.d_model)
    assert torch.allclose(head_logits(model, states), expected, atol=1e-5)
    picked = head_logits(model, states[2, 1:])
    assert torch.allclose(picked, expected[2, 1:], atol=1e-5)
    assert torch.equal(model.hf(**inputs, logits_to_keep=3).logits, expected)  # nothing is left behind


@torch.no_grad()
def test_a_head_that_adds_something_of_its_own_is_not_run_apart(
    llama: Model, rows: list[Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = llama.hf.forward
    inputs = inputs_of(llama, rows)
    plain = llama.hf(**inputs, logits_to_keep=2).logits

    def with_more(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = output.logits + 1.0 * kwargs["input_ids"].shape[1]  # of the tokens, which the head does not see
        return output

    monkeypatch.setattr(llama.hf, "forward", with_more)
    head._KNOWN.pop(llama.hf, None)
    assert not is_separate(llama)
    found = head_logits(llama, final_states(llama, inputs, 2))
    assert torch.allclose(found, plain + max(map(len, rows)), atol=1e-4)
