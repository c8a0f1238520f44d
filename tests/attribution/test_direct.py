"""Direct attribution is complete: embedding, heads, MLPs and constants sum to the stream's own projection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from iconoclast_tl.architecture.layers import decoder_layers
from iconoclast_tl.architecture.sites import read_hook_name
from iconoclast_tl.attribution.direct import direct, unembedding
from iconoclast_tl.attribution.parts import Part
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.model import Model
from iconoclast_tl.models.twin import Twin, make_twin
from iconoclast_tl.scores.logit_difference import LogitDifference
from tests.architectures import save_architecture
from tests.attribution.subjects import NAMES

RISING, FALLING = torch.tensor([9, 10]), torch.tensor([11, 12, 13])


@pytest.fixture(params=(*NAMES, "Cohere 2", "XGLM"))
def model(request: pytest.FixtureRequest, tmp_path: Path, load: Callable[..., Model]) -> Model:
    return load(save_architecture(tmp_path / "model", request.param))


@pytest.fixture
def v() -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(24, generator=torch.Generator().manual_seed(5)), dim=0)


def last_stream(model: Model, row: list[int]) -> torch.Tensor:
    """The last residual point of every position of a prompt by itself."""
    kept: list[torch.Tensor] = []
    handle = decoder_layers(model.hf)[-1].register_forward_hook(
        lambda module, args, output: kept.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        model.hf(torch.tensor([row]))
    handle.remove()
    return kept[0].reshape(len(row), -1)


def test_the_parts_sum_to_the_projection(model: Model, rows: list[list[int]], v: torch.Tensor) -> None:
    found = direct(model, rows, v, batch_size=3, positions=True)
    expected = torch.stack([last_stream(model, row)[-1] @ v for row in rows])
    assert torch.allclose(found.values.sum(-1), expected, atol=1e-4)
    largest = int(found.values.abs().mean(0).argmax())
    without = [index for index in range(len(found.parts)) if index != largest]
    assert not torch.allclose(found.values[:, without].sum(-1), expected, atol=1e-2)
    assert found.by_position is not None
    assert found.by_position.positions == tuple(range(1 - max(map(len, rows)), 1))
    assert torch.allclose(found.by_position.values[-1], found.means, atol=1e-6)
    before = torch.stack([last_stream(model, row)[-2] @ v for row in rows if len(row) > 1]).double().mean()
    assert float(found.by_position.values[-2].sum()) == pytest.approx(float(before), abs=1e-4)


def test_the_parts_sum_to_a_difference_of_logits(model: Model, rows: list[list[int]]) -> None:
    u = unembedding(model, RISING, FALLING)
    found = direct(model, rows, u, batch_size=3)
    score = LogitDifference(model, rows, RISING, FALLING)
    logits = score.read(score.ask(torch.arange(len(rows))))[0].detach()
    config = model.hf.config.get_text_config()
    if not getattr(config, "final_logit_softcapping", None):  # the sum is of logits before any cap
        assert torch.allclose(found.values.sum(-1), logits, atol=1e-4)
    unfolded = direct(model, rows, u.vector, batch_size=3)
    assert not torch.allclose(unfolded.values.sum(-1), found.values.sum(-1), atol=1e-2)


def test_heads_are_what_transformer_lens_says(llama: Model, rows: list[list[int]], v: torch.Tensor) -> None:
    """Through `hook_z` and W_O on the bridge."""
    found = direct(llama, rows[:1], v, batch_size=1)
    twin = make_twin(llama)
    assert isinstance(twin, Twin)
    with torch.no_grad():
        _, cache = twin.bridge.run_with_cache(torch.tensor(rows[:1]))
    for part, value in zip(found.parts, found.values[0], strict=True):
        if part.component == "head" and part.head is not None:
            z = cache[read_hook_name(part.site)].reshape(len(rows[0]), 4, 8)[-1, part.head]
            w_o = llama.hf.model.layers[part.layer].self_attn.o_proj.weight[:, 8 * part.head : 8 * part.head + 8]
            assert float(value) == pytest.approx(float(v @ (w_o @ z)), abs=1e-5)


def test_a_bias_belongs_to_no_head(biased: Model, rows: list[list[int]], v: torch.Tensor) -> None:
    found = direct(biased, rows, v, batch_size=8)
    column = found.values[:, found.parts.index(Part(1, "bias"))]
    assert torch.allclose(column, (biased.hf.model.layers[1].self_attn.o_proj.bias @ v).expand(len(rows)), atol=1e-6)


def test_what_does_not_add_up_is_refused(llama: Model, rows: list[list[int]], v: torch.Tensor) -> None:
    """A writer that nobody knows of: layers add a constant."""
    handle = llama.hf.model.layers[1].register_forward_hook(lambda module, args, output: output + v)
    with pytest.raises(UserError, match="the parts of LlamaForCausalLM do not add up to its stream"):
        direct(llama, rows, v, batch_size=8)
    handle.remove()


def test_batches_change_nothing(llama: Model, rows: list[list[int]], v: torch.Tensor) -> None:
    one, all_ = (direct(llama, rows, v, batch_size=size) for size in (1, 8))
    assert torch.allclose(one.values, all_.values, atol=1e-5)
    assert replace(one, values=all_.values).top(3) == one.top(3)
