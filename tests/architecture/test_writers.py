"""Writers: found in every layout, every expert counted, and a clear no where not all is found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from iconoclast_tl.architecture.sites import Site
from iconoclast_tl.architecture.writers import Matrix, Writer, known_writers, require_writers
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.model import Model


def test_writers_are_o_proj_and_down_proj_of_every_layer(llama: Model) -> None:
    found = require_writers(llama.hf)
    assert {site: writer.module for site, writer in found.items()} == {
        Site(layer, component): f"model.layers.{layer}.{path}"
        for layer in range(3)
        for component, path in (("attn_out", "self_attn.o_proj"), ("mlp_out", "mlp.down_proj"))
    }
    assert all(writer.is_dense and writer.n_matrices == 1 for writer in found.values())


def mixtral(**changes: int) -> torch.nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=32, hidden_size=16, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=3, num_experts_per_tok=2, **changes,
    )  # fmt: skip
    return MixtralForCausalLM(config)


def test_fused_experts_are_one_parameter_of_many_matrices() -> None:
    hf = mixtral()
    writer = require_writers(hf)[Site(1, "mlp_out")]
    assert writer == Writer(
        "model.layers.1.mlp", (Matrix("model.layers.1.mlp.experts", "down_proj", None, False, n_experts=3),)
    )
    assert writer.n_matrices == 3
    weight, bias = writer.matrices[0].read(hf)
    assert weight.shape == (3, 16, 12)
    assert bias is None


def test_what_is_stored_is_what_was_read() -> None:
    from transformers.pytorch_utils import Conv1D

    block = torch.nn.Module()
    block.c = Conv1D(6, 4)  # (d_in, d_model)
    block.w = torch.nn.Parameter(torch.randn(2, 4, 6))
    block.w_bias = torch.nn.Parameter(torch.randn(2, 6))
    hf = torch.nn.ModuleDict({"b": block})
    x = torch.randn(3, 4)
    conv, fused = Matrix("b.c", "weight", "bias", transposed=True), Matrix("b", "w", "w_bias", True, 2)
    (weight,), bias = conv.read(hf)
    assert bias is not None
    torch.testing.assert_close(x @ weight.T + bias[0], block.c(x))
    weights, biases = fused.read(hf)
    assert biases is not None
    torch.testing.assert_close(x @ weights[1].T + biases[1], x @ block.w[1] + block.w_bias[1])
    for matrix in (conv, fused):
        for name, tensor in matrix.stored(*matrix.read(hf)).items():
            assert torch.equal(tensor, hf.state_dict()[name])


def test_experts_that_are_not_all_found_are_refused_rather_than_edited_in_half() -> None:
    hf = mixtral()
    hf.config.num_local_experts = 4
    with pytest.raises(UserError, match="got 3 that write into the stream; want 4 routed ones; pass --attention-only"):
        require_writers(hf)
    assert set(require_writers(hf, ["attn_out"])) == {Site(0, "attn_out"), Site(1, "attn_out")}
    assert set(known_writers(hf)) == {Site(0, "attn_out"), Site(1, "attn_out")}


def test_experts_by_another_name_are_refused() -> None:
    hf = mixtral()
    experts = hf.get_submodule("model.layers.1.mlp.experts")
    experts.register_parameter("outward", experts._parameters.pop("down_proj"))
    with pytest.raises(UserError, match="got 0 that write into the stream"):
        require_writers(hf)


def test_experts_that_do_not_say_which_way_round_they_are_stored_are_refused() -> None:
    hf = mixtral()
    for layer in hf.get_submodule("model.layers"):
        del layer.mlp.experts.is_transposed
    with pytest.raises(UserError, match="got 0 that write into the stream"):
        require_writers(hf)


def test_a_layer_without_a_known_writer_is_refused(llama: Model) -> None:
    mlp = llama.hf.model.layers[1].mlp
    mlp.add_module("outward", mlp._modules.pop("down_proj"))  # so that it cannot be asked what it computes either
    with pytest.raises(UserError, match=r"model\.layers\.1 of LlamaForCausalLM has no linear that is known to write"):
        require_writers(llama.hf)
    assert Site(1, "mlp_out") not in known_writers(llama.hf)
    assert len(known_writers(llama.hf)) == 5


def test_an_unknown_layout_is_told() -> None:
    with pytest.raises(UserError, match="decoder layers"):
        require_writers(torch.nn.Sequential(torch.nn.Linear(2, 2)))


def test_layers_are_found_where_no_list_names_them(llama: Model, tmp_path: Path) -> None:
    from iconoclast_tl.architecture.layers import decoder_layer_list

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.towers = torch.nn.ModuleList([torch.nn.Linear(1, 1)] * 3)
            self.inner = torch.nn.ModuleDict({"blocks": llama.hf.model.layers})

    class Odd(torch.nn.Module):
        config = llama.hf.config

        def __init__(self) -> None:
            super().__init__()
            self.text = Decoder()

        def get_decoder(self) -> torch.nn.Module:
            return self.text.inner

    path, layers = decoder_layer_list(Odd())
    assert path == "text.inner.blocks"
    assert layers is llama.hf.model.layers
