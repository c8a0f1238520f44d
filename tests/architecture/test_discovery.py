"""Writers found by what they compute are those that are known by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from iconoclast_tl.architecture import writers
from iconoclast_tl.architecture.discovery import discover
from iconoclast_tl.architecture.sites import Site
from iconoclast_tl.architecture.writers import known_writers, require_writers
from iconoclast_tl.models.model import Model
from tests.architectures import ARCHITECTURES, save_architecture

DENSE = [name for name, architecture in ARCHITECTURES.items() if architecture.matrices == 6]


@pytest.fixture
def model(request: pytest.FixtureRequest, tmp_path: Path, load: Callable[..., Model]) -> Model:
    return load(save_architecture(tmp_path, request.param))


@pytest.mark.parametrize("model", DENSE, indirect=True, ids=DENSE)
def test_what_is_found_is_what_is_known(model: Model) -> None:
    """Whatever the architecture: queries and keys of the stream's width, parallel blocks, post-norms, other names."""
    found = discover(model.hf, writers._is_linear)
    assert found == {site: writer.module for site, writer in require_writers(model.hf).items()}
    assert not [module for module in model.hf.modules() if module._forward_hooks]


@pytest.mark.parametrize("model", ["Mixtral"], indirect=True)
def test_a_layer_with_more_than_two_writers_is_left_out(model: Model) -> None:
    assert discover(model.hf, writers._is_linear) == {}  # fused experts are no linears: the layer is never silent


def test_a_writer_under_another_name_is_found_once(llama: Model) -> None:
    expected = {site: writer.module for site, writer in require_writers(llama.hf).items()}
    layer = llama.hf.model.layers[1]
    layer.mixer = layer.self_attn
    del layer.self_attn
    layer.forward = _renamed(layer)
    assert Site(1, "attn_out") in known_writers(llama.hf)
    runs: list[int] = []
    llama.hf.register_forward_pre_hook(lambda *_: runs.append(1))
    found = {site: writer.module for site, writer in require_writers(llama.hf).items()}
    assert found == {**expected, Site(1, "attn_out"): "model.layers.1.mixer.o_proj"}
    assert not runs


def _renamed(layer: Any) -> Callable[..., Any]:
    def forward(hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        mixed, _ = layer.mixer(hidden_states=layer.input_layernorm(hidden_states), **kwargs)
        states = hidden_states + mixed
        return states + layer.mlp(layer.post_attention_layernorm(states))

    return forward
