"""The twin shares the model's storage, computes its logits, and leaves it pristine."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from iconoclast_tl.models import twin as twin_module
from iconoclast_tl.models.model import Model
from iconoclast_tl.models.twin import Parity, Twin, make_twin, share
from tests.conftest import save_llama


def pointers(hf: torch.nn.Module) -> dict[str, int]:
    return {name: parameter.data_ptr() for name, parameter in hf.named_parameters()}


@pytest.mark.parametrize("tied", [False, True])
def test_a_shared_model_has_the_same_storages(tmp_path: Path, load: Callable[..., Model], tied: bool) -> None:
    hf = load(save_llama(tmp_path, tie_word_embeddings=tied)).hf
    assert pointers(share(hf)) == pointers(hf)
    assert set(pointers(copy.deepcopy(hf)).values()).isdisjoint(pointers(hf).values())  # a copy is seen to be one


def test_buffers_that_no_state_dict_holds_are_shared_too(llama: Model) -> None:
    mine = dict(llama.hf.named_buffers())
    theirs = dict(share(llama.hf).named_buffers())
    assert mine.keys() == theirs.keys()
    assert mine
    assert all(theirs[name] is mine[name] for name in mine)


def test_the_twin_computes_the_models_logits_and_leaves_it_pristine(llama: Model) -> None:
    before = {name: type(module) for name, module in llama.hf.named_modules()}
    keys = list(llama.hf.state_dict())
    ids = torch.arange(4, 12)[None]
    logits = llama.hf(ids).logits
    twin = make_twin(llama)
    assert isinstance(twin, Twin)
    assert twin.parity.ok
    assert {name: type(module) for name, module in llama.hf.named_modules()} == before
    assert list(llama.hf.state_dict()) == keys
    assert torch.equal(llama.hf(ids).logits, logits)
    wrapped = {p.data_ptr() for p in twin.bridge.parameters()}
    assert set(pointers(llama.hf).values()) <= wrapped


def test_a_bridge_that_computes_something_else_is_refused(llama: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = twin_module._wrap

    def wrong(model: Model) -> object:
        bridge = honest(model)
        bridge.blocks[1].mlp.hook_out.register_forward_hook(lambda module, args, output: output * 1.01)
        return bridge

    monkeypatch.setattr(twin_module, "_wrap", wrong)
    found = make_twin(llama)
    assert isinstance(found, Parity)
    assert not found.ok
    assert "differ by" in found.reason


def test_an_architecture_that_transformer_lens_does_not_know_is_told(
    llama: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(model: Model) -> object:
        raise ValueError("Unsupported architecture\nsecond line")

    monkeypatch.setattr(twin_module, "_wrap", unknown)
    found = make_twin(llama)
    assert isinstance(found, Parity)
    assert found.reason == "TransformerLens cannot wrap LlamaForCausalLM: Unsupported architecture"
