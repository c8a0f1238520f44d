"""Collected residuals are the model's own, whatever the batching, and the last one is before the final norm."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from iconoclast_tl.activations.collect import AtWriters, _bridge_reader, _module_reader, collect_residuals
from iconoclast_tl.activations.store import Activations, load_activations, save_activations
from iconoclast_tl.architecture.sites import WRITERS, residual_hook_names
from iconoclast_tl.architecture.writers import require_writers
from iconoclast_tl.execution.shared_prefix import shares
from iconoclast_tl.execution.token_passes import counted
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.model import Model
from iconoclast_tl.models.twin import Parity, Twin, make_twin
from iconoclast_tl.prompts.tokens import left_pad
from tests.activations.last_position import collect_last_position


def residuals_one_by_one(model: Model, rows: list[list[int]], position: int = -1) -> torch.Tensor:
    """Every prompt alone, no padding: hidden states, and the last layer's output before the final norm."""
    result = []
    for row in rows:
        kept: list[torch.Tensor] = []
        handle = model.hf.model.norm.register_forward_pre_hook(lambda m, args, kept=kept: kept.append(args[0]))
        states = model.hf(torch.tensor([row]), output_hidden_states=True).hidden_states
        handle.remove()
        result.append(torch.stack([state[0, position] for state in (*states[:-1], kept[0])]))
    return torch.stack(result)


@pytest.mark.parametrize("through", ["bridge", "modules"])
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_residuals_equal_those_of_each_prompt_alone(
    llama: Model, rows: list[list[int]], through: str, batch_size: int
) -> None:
    twin = make_twin(llama)
    assert isinstance(twin, Twin)
    found = collect_last_position(llama, twin if through == "bridge" else None, rows, batch_size)
    expected = residuals_one_by_one(llama, rows)
    assert torch.allclose(found.residuals, expected, atol=1e-5)  # float32: attention sums over other widths
    after_norm = llama.hf.model.norm(expected[:, -1])
    assert not torch.allclose(found.residuals[:, -1], after_norm, atol=1e-2)


def at_positions(
    model: Model, twin: Twin | None, rows: list[list[int]], n_positions: int, batch_size: int
) -> tuple[torch.Tensor, AtWriters]:
    """Residuals in memory, and the writers."""
    kept = torch.full((len(rows), n_positions, model.n_layers + 1, model.d_model), float("nan"))

    def keep(where: Sequence[int], found: torch.Tensor) -> None:
        kept[list(where)] = found

    return kept, collect_residuals(model, twin, rows, keep, n_positions, batch_size)


@pytest.mark.parametrize("n_positions", [1, 3])
def test_what_all_prompts_begin_with_is_run_once_and_read_where_it_belongs(
    llama: Model, rows: list[list[int]], n_positions: int
) -> None:
    begin = [9, 8, 7, 6, 5, 10]
    common = [begin + row for row in rows]
    assert shares(llama)  # found out outside of what is counted
    with counted(llama.hf) as passes:
        found, _ = at_positions(llama, None, common, n_positions, 1)
    shared = len(begin) + min(min(map(len, rows)) - n_positions, 0)  # the positions that are read are never shared
    assert passes.forward == sum(map(len, common)) - (len(rows) - 1) * shared
    for position in range(n_positions):
        expected = residuals_one_by_one(llama, common, -1 - position)
        assert torch.allclose(found[:, position], expected, atol=1e-5)
    assert not torch.allclose(found[:, 0], residuals_one_by_one(llama, rows), atol=1e-2)


@pytest.mark.parametrize("through", ["bridge", "modules"])
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_residuals_at_each_position_equal_those_of_each_prompt_alone(
    llama: Model, rows: list[list[int]], through: str, batch_size: int
) -> None:
    rows = [row for row in rows if len(row) > 2]  # of 3 to 13 tokens: as many as are asked for, and more
    twin = make_twin(llama) if through == "bridge" else None
    assert not isinstance(twin, Parity)
    found, writers = at_positions(llama, twin, rows, 3, batch_size)
    expected = [residuals_one_by_one(llama, rows, position) for position in (-1, -2, -3)]
    assert torch.allclose(found, torch.stack(expected, dim=1), atol=1e-5)
    assert not torch.allclose(expected[0], expected[1], atol=1e-2)
    last = collect_last_position(llama, twin, rows, batch_size)
    assert torch.equal(found[:, 0], last.residuals)
    for component in WRITERS:  # what writers do stays that of the last position
        assert torch.equal(writers.writes[component].mean, last.writes[component].mean)
        assert torch.equal(writers.reads[component].mean, last.reads[component].mean)


def test_a_prompt_shorter_than_the_positions_is_the_users_line(llama: Model, rows: list[list[int]]) -> None:
    with pytest.raises(UserError, match=r"prompt 6 is shorter than the positions.*got 2 tokens; want at least 3"):
        at_positions(llama, None, rows, 3, 4)
    assert not at_positions(llama, None, rows, 2, 4)[0].isnan().any()


@pytest.mark.parametrize("through", ["bridge", "modules"])
@pytest.mark.parametrize("n_positions", [1, 2])
def test_the_last_positions_are_kept_and_not_the_whole_activation(
    llama: Model, rows: list[list[int]], through: str, n_positions: int
) -> None:
    twin = make_twin(llama)
    assert isinstance(twin, Twin)
    reader = _module_reader(llama, n_positions)
    batch = left_pad([row for row in rows if len(row) > 2], llama.pad_id)
    found = (_bridge_reader(llama, twin.bridge, n_positions) if through == "bridge" else reader)(batch)
    points = set(residual_hook_names(llama.n_layers))
    assert points < found.keys()
    for name, tensor in found.items():
        assert tensor.shape[:-1] == ((len(batch.rows), n_positions) if name in points else (len(batch.rows),))
        most = len(batch.rows) * n_positions * tensor.shape[-1] * tensor.itemsize
        assert tensor.untyped_storage().nbytes() <= most  # a view would hold all 13


def test_written_means_are_the_means_of_what_the_writers_write(llama: Model, rows: list[list[int]]) -> None:
    written: dict[str, list[torch.Tensor]] = {component: [] for component in WRITERS}
    for site, writer in require_writers(llama.hf).items():
        if site.layer == 1:
            llama.hf.get_submodule(writer.module).register_forward_hook(
                lambda m, a, output, name=site.component: written[name].append(output[0, -1].double())
            )
    for row in rows:
        llama.hf(torch.tensor([row]))
    expected = {name: torch.stack(list(values)).mean(0) for name, values in written.items()}
    found = collect_last_position(llama, None, rows, 4)
    for component in WRITERS:
        assert found.writes[component].n == len(rows)
        assert torch.allclose(found.writes[component].mean[1], expected[component], atol=1e-6)


def test_a_batch_that_does_not_fit_is_halved(
    llama: Model, rows: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = collect_last_position(llama, None, rows, 7)
    forward = llama.hf.forward

    def cramped(**inputs: torch.Tensor) -> object:
        if len(inputs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("too many")
        return forward(**inputs)

    monkeypatch.setattr(llama.hf, "forward", cramped)
    found = collect_last_position(llama, None, rows, 7)
    assert torch.allclose(found.residuals, expected.residuals, atol=1e-5)
    assert found.writes["attn_out"].n == len(rows)


@pytest.mark.parametrize("through", ["bridge", "modules"])
def test_an_activation_that_is_not_finite_names_its_layer(llama: Model, rows: list[list[int]], through: str) -> None:
    twin = make_twin(llama) if through == "bridge" else None
    with torch.no_grad():
        llama.hf.model.layers[1].self_attn.o_proj.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match="activations of layer 1 are not finite"):
        collect_last_position(llama, twin, rows, 4)


def test_no_hook_stays_behind(llama: Model, rows: list[list[int]]) -> None:
    collect_last_position(llama, None, rows, 4)
    hooks = [m for m in llama.hf.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooks


def test_activations_are_read_only_under_their_key(tmp_path) -> None:
    residuals = torch.randn(4, 3, 5)
    kept = Activations(
        target_train=residuals,
        neutral_train=residuals + 1,
        target_val=residuals + 2,
        neutral_val=residuals + 3,
        neutral_writes=dict.fromkeys(WRITERS, residuals[0]),
    )
    save_activations(tmp_path / "a.safetensors", kept, "one")
    found = load_activations(tmp_path / "a.safetensors", "one")
    assert found is not None
    assert torch.equal(found.neutral_val, residuals + 3)
    assert load_activations(tmp_path / "a.safetensors", "another") is None
    assert load_activations(tmp_path / "b.safetensors", "one") is None
    (tmp_path / "a.safetensors").write_bytes(b"damaged")
    assert load_activations(tmp_path / "a.safetensors", "one") is None
