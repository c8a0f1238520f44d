"""Architectures that users name: a Llama whose parts were renamed, unknown without its names and exact with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import pytest
import torch

from iconoclast_tl.architecture.final_norm import final_norm
from iconoclast_tl.architecture.layers import decoder_layer_list
from iconoclast_tl.architecture.names import ArchitectureNames, names_of, register_architecture
from iconoclast_tl.architecture.post_norm import post_norm_gains
from iconoclast_tl.architecture.sites import Site
from iconoclast_tl.architecture.writers import known_writers, require_writers
from iconoclast_tl.edits.completeness import require_all_known
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.model import Model
from tests.plugins import own_registries

NAMES: dict[str, Any] = {"attention": "mixer", "attn_out": "inner.out", "mlp": "gate", "mlp_out": "down_proj"}
KIND = "LlamaForCausalLM"


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    with own_registries():
        yield


@pytest.fixture
def river(llama: Model) -> Model:
    """The same computation under other names; discovery is out of the game, since a third linear writes too."""
    for layer in llama.hf.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        attention.inner = torch.nn.ModuleDict({"out": attention.o_proj})
        attention.forward = _forward(attention, attention.forward)
        layer.mixer, layer.gate = attention, mlp
        del layer.self_attn, layer.mlp, attention.o_proj
        layer.forward = MethodType(_layer, layer)
    return llama


def _forward(attention: Any, forward: Callable[..., Any]) -> Callable[..., Any]:
    def call(*given: Any, **more: Any) -> Any:
        vars(attention)["o_proj"] = attention.inner.out
        return forward(*given, **more)

    return call


def _layer(layer: Any, hidden_states: torch.Tensor, **more: Any) -> torch.Tensor:
    mixed, _ = layer.mixer(hidden_states=layer.input_layernorm(hidden_states), **more)
    states: torch.Tensor = hidden_states + mixed
    written: torch.Tensor = layer.gate(layer.post_attention_layernorm(states))
    return states + written


def test_named_writers_are_used_first(river: Model) -> None:
    register_architecture(KIND, **NAMES)
    found = {site: writer.module for site, writer in require_writers(river.hf).items()}
    assert found == {
        Site(layer, component): f"model.layers.{layer}.{path}"
        for layer in range(3)
        for component, path in (("attn_out", "mixer.inner.out"), ("mlp_out", "gate.down_proj"))
    }
    require_all_known(river)
    assert set(known_writers(river.hf)) == set(found)


def test_the_class_counts_before_the_model_type() -> None:
    class Config:
        model_type = "river"

    class River(torch.nn.Module):
        config = Config()

    by_type = register_architecture("river", layers="a")
    assert names_of(River()) is by_type
    by_class = register_architecture("River", ArchitectureNames(layers="b"))
    assert names_of(River()) is by_class
    assert names_of(torch.nn.Linear(1, 1)) == ArchitectureNames()


def test_layers_and_final_norm_are_where_they_are_said_to_be(llama: Model) -> None:
    assert decoder_layer_list(llama.hf)[0] == "model.layers"
    llama.hf.river = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList(list(llama.hf.model.layers)[:2])})
    register_architecture(KIND, layers="river.blocks", final_norm="model.layers.0.input_layernorm")
    path, layers = decoder_layer_list(llama.hf)
    assert (path, len(layers)) == ("river.blocks", 2)
    assert final_norm(llama.hf) is llama.hf.model.layers[0].input_layernorm


def test_named_post_norms_give_gains(llama: Model) -> None:
    assert post_norm_gains(llama.hf) == {}
    register_architecture(KIND, mlp_post_norm="input_layernorm")
    gains = post_norm_gains(llama.hf)
    assert set(gains) == {"mlp_out"}
    weights = torch.stack([layer.input_layernorm.weight for layer in llama.hf.model.layers])
    assert torch.allclose(gains["mlp_out"], weights.detach(), atol=1e-4)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "block": ({"attention": "mixture"}, r"model\.layers\.0 of Llama.* no block that writes attn_out by the registered"),
    "matrix": ({"mlp_out": "downward"}, r"model\.layers\.0\.mlp of .* no linear that writes mlp_out .* want downward"),
    "layers": ({"layers": "model.blocks"}, r"the model of Llama.* has no list of layers .*: got model, lm_head"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_name_of_nothing_is_told_and_nothing_else_taken_for_it(llama: Model, name: str) -> None:
    given, told = WRONG[name]
    require_writers(llama.hf)  # known without any names
    register_architecture(KIND, **given)
    with pytest.raises(UserError, match=told) as error:
        require_writers(llama.hf)
    assert str(error.value).endswith("correct what itl.register_architecture registers")


def test_norms_that_are_not_there_are_told(llama: Model) -> None:
    register_architecture(KIND, final_norm="model.last", mlp_post_norm="after")
    with pytest.raises(UserError, match=r"the model of .* has no final norm by the registered name"):
        final_norm(llama.hf)
    with pytest.raises(UserError, match=r"layer 0 of .* has no norm after mlp_out by the registered name"):
        post_norm_gains(llama.hf)


@pytest.mark.parametrize("given", [{"attn_out": "v_proj"}, {"mlp_post_norm": "input_layernorm"}])
def test_a_module_that_writes_elsewhere_is_told_by_what_is_left(llama_folder: Any, load: Any, given: Any) -> None:
    require_all_known(load(llama_folder))
    register_architecture(KIND, **given)
    with pytest.raises(UserError, match=r"correct what itl\.register_architecture registers") as error:
        require_all_known(load(llama_folder))
    assert "\n" not in str(error.value)


def test_a_field_that_there_is_not_and_a_name_that_is_taken() -> None:
    with pytest.raises(UserError, match="an architecture has no atention: got River; want some of layers, attention"):
        register_architecture("River", atention="a")
    register_architecture("River", attention="a")
    register_architecture("River", attention="b")  # a cell that is run twice
    from iconoclast_tl.architecture.names import ARCHITECTURES

    with pytest.raises(UserError, match="the architecture name 'River' is taken: got one by __main__"):
        ARCHITECTURES.add("River", ArchitectureNames(), module="elsewhere")
