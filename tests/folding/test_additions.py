"""An addition to the stream is a bias of the layer before: preview, adapter and merged weights agree, or it is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from iconoclast_tl.architecture.hook_points import hf_sites
from iconoclast_tl.architecture.sites import Site
from iconoclast_tl.edits.addition import Addition, make_addition, with_addition
from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.edits.hooks import preview
from iconoclast_tl.folding.additions import as_writes
from iconoclast_tl.folding.fidelity import Fidelity
from iconoclast_tl.folding.fold import fold
from iconoclast_tl.folding.merge import merged_model
from iconoclast_tl.folding.merge_files import merge_files, plan_merge
from iconoclast_tl.folding.verification import agreement_of_fold, reload_merged
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.model import Model
from tests.architectures import save_architecture
from tests.conftest import save_llama
from tests.edits.edits import random_edit

Load = Callable[..., Model]
PASSED_ON = ("Llama", "Llama, biases", "GPT-2", "Phi-2", "GPT-J", "OPT", "Falcon (new decoder)", "BLOOM")
"""Sequential and parallel blocks, biases and none, Conv1D, writers of other names."""


def addition(model: Model, point: int = 1, coefficient: float = 3.0) -> Edit:
    vector = normalize(torch.randn(model.d_model, generator=torch.Generator().manual_seed(9)), dim=0)
    return make_addition(Addition(vector, point, coefficient), model.n_layers)


def beside(edit: Edit, point: int = 1) -> Edit:
    vector = normalize(torch.randn(edit.directions.shape[-1], generator=torch.Generator().manual_seed(9)), dim=0)
    return with_addition(edit, Addition(vector, point, 3.0))


def under(edit: Edit, model: Model) -> torch.Tensor:
    with torch.no_grad(), preview(edit, hf_sites(model.hf)):
        found: torch.Tensor = model.hf(torch.arange(8, 20).reshape(2, 6)).logits
    return found


def folded(model: Model, edit: Edit, rows: list[list[int]], place: Path, merge: bool = True) -> Fidelity:
    made, merged = fold(edit, model), None
    made.save(place / "adapter")
    if merge:
        merge_files(plan_merge(edit, model.hf, Path(model.name)), place / "merged")
        merged = reload_merged(model, place / "merged")
    return agreement_of_fold(edit, made, rows, place / "adapter", merged, batch_size=7)


@pytest.mark.parametrize("name", PASSED_ON)
def test_what_enters_a_layer_is_what_the_mlp_before_it_writes(tmp_path: Path, load: Load, name: str) -> None:
    model = load(save_architecture(tmp_path / "model", name))
    base = under(addition(model, coefficient=0.0), model)
    for point in (1, 2):
        edit = addition(model, point)
        moved = as_writes(edit, model.hf)
        assert moved.sites == [Site(point - 1, "mlp_out")]
        assert torch.allclose(under(moved, model), under(edit, model), atol=1e-5)  # measured: 3e-6 at most
        by_attention = replace(moved, shifts={"attn_out": moved.shifts["mlp_out"]})
        later = addition(model, 3 - point)
        for other in (base, under(later, model)):
            assert not torch.allclose(under(edit, model), other, atol=1e-2)
        if name in ("Llama", "GPT-2"):  # attention's write is read by the MLP, too; in parallel blocks it is the same
            assert not torch.allclose(under(edit, model), under(by_attention, model), atol=1e-2)


@pytest.mark.parametrize("name", ["Llama", "Llama, biases", "GPT-2", "Phi-2"])
def test_preview_adapter_and_merged_weights_agree(tmp_path: Path, load: Load, rows: list[list[int]], name: str) -> None:
    model = load(save_architecture(tmp_path / "model", name))
    found = folded(model, addition(model), rows, tmp_path)
    assert found.preview_vs_adapter.max_abs_logit_diff < 1e-5
    assert found.preview_vs_merged is not None
    assert found.preview_vs_merged.max_abs_logit_diff < 1e-5
    assert found.preview_vs_base > 0.5
    assert found.n_matrices == 1
    assert found.residual_fraction == {}  # nothing is taken out
    wrong = fold(addition(model, coefficient=3.03), model)
    wrong.save(tmp_path / "wrong")
    assert not agreement_of_fold(addition(model), wrong, rows, tmp_path / "wrong", None).ok


@pytest.mark.parametrize("row_normalization", ["none", "pre", "full"])
def test_beside_an_ablation_it_folds_too(
    llama: Model, rows: list[list[int]], tmp_path: Path, row_normalization: str
) -> None:
    edit = beside(random_edit(k=2, affine=True, row_normalization=row_normalization), 2)
    own = {"mlp_out": edit.shifts["resid_pre"].roll(-2, 0)}  # and what layer 0's MLP writes is ablated and added to
    edit = replace(edit, shifts={**edit.shifts, **own})
    found = folded(llama, edit, rows, tmp_path)  # what layer 1's MLP writes is not ablated
    assert found.ok
    assert found.preview_vs_adapter.max_abs_logit_diff < 1e-5
    assert len(found.residual_fraction) == 5
    assert found.n_matrices == 6
    alone = fold(random_edit(k=2, affine=True, row_normalization=row_normalization), llama)
    alone.save(tmp_path / "alone")
    assert not agreement_of_fold(edit, alone, rows, tmp_path / "alone", None).ok


def test_writes_that_are_scaled_on_their_way_get_as_much_more(tmp_path: Path, load: Load) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    place = save_architecture(tmp_path / "model", "Granite")
    config = AutoConfig.from_pretrained(str(place))
    config.residual_multiplier = 0.25
    AutoModelForCausalLM.from_pretrained(str(place), config=config).save_pretrained(str(place))
    model = load(place)
    edit = addition(model)
    moved = as_writes(edit, model.hf)
    assert torch.allclose(moved.shifts["mlp_out"][0], 4 * edit.shifts["resid_pre"][1])
    assert torch.allclose(under(moved, model), under(edit, model), atol=1e-5)
    unscaled = replace(moved, shifts={"mlp_out": moved.shifts["mlp_out"] / 4})
    assert not torch.allclose(under(unscaled, model), under(edit, model), atol=1e-2)


def test_beside_experts_an_adapter_gives_no_layer_a_bias(tmp_path: Path, load: Load, rows: list[list[int]]) -> None:
    """PEFT would leave it out without a word: the dense first layer's linear is called what the experts are."""
    model = load(save_architecture(tmp_path / "model", "DeepSeek-V3 (MLA, shared experts, first layer dense)"))
    for edit in (addition(model), beside(random_edit())):
        assert as_writes(edit, model.hf).sites[0] in {Site(0, "mlp_out"), Site(0, "attn_out")}
        with pytest.raises(UserError, match=r"cannot give model.layers.0.mlp.down_proj a bias: got a constant to add"):
            folded(model, edit, rows, tmp_path, merge=False)
    assert folded(model, random_edit(), rows, tmp_path, merge=False).ok  # the negative control: nothing to add
    with pytest.raises(UserError, match="an addition to what enters layer 2 cannot be folded into experts"):
        fold(beside(random_edit(), 2), model)


@pytest.mark.parametrize(
    ("name", "point", "said"),
    [
        ("Llama", 0, "point 0 cannot be folded: got what enters layer 0: the embedding"),
        ("Gemma 2", 1, "point 1 cannot be folded into Gemma2ForCausalLM: got a norm between what layer 0 writes"),
        ("EXAONE 4", 2, "got a norm between what layer 1 writes and the stream"),
        ("Mixtral", 1, "cannot be folded into experts: got a mixture at 0.mlp_out, which weights what its experts"),
    ],
)
def test_where_it_would_be_something_else_it_is_told(
    tmp_path: Path, load: Load, name: str, point: int, said: str
) -> None:
    model = load(save_architecture(tmp_path / "model", name))
    edit = addition(model, point)
    for made in (lambda: fold(edit, model), lambda: plan_merge(edit, model.hf, Path(model.name))):
        with pytest.raises(UserError, match=said):
            made()
    assert not torch.allclose(under(edit, model), under(addition(model, coefficient=0.0), model), atol=1e-2)  # it shows


def test_behind_a_post_norm_a_constant_is_another_one(tmp_path: Path, load: Load) -> None:
    """So that the refusal is no excuse: the bias there is not the addition, whatever its size."""
    model = load(save_architecture(tmp_path / "model", "Gemma 2"))
    edit = addition(model)
    expected, before = under(edit, model), edit.shifts["resid_pre"].roll(-1, 0)
    for factor in (0.1, 0.3, 1.0, 3.0, 10.0):
        by_mlp = replace(edit, shifts={"mlp_out": factor * before})
        assert float((under(by_mlp, model) - expected).abs().max()) > 0.1


def test_kept_norms_and_the_stream_are_told(llama: Model) -> None:
    for edit in (replace(random_edit(), keep_norm=True), replace(beside(random_edit()), keep_norm=True)):
        with pytest.raises(UserError, match=r"keeps norms cannot be folded.*how much a token is scaled depends"):
            fold(edit, llama)
    with pytest.raises(UserError, match="scope stream cannot be folded"):
        fold(beside(random_edit(stream=True)), llama)
    with pytest.raises(UserError, match="no strength other than zero"):
        fold(addition(llama, coefficient=0.0), llama)


def test_where_no_bias_can_be_only_the_adapter_carries_it(tmp_path: Path, load: Load, rows: list[list[int]]) -> None:
    model = load(save_architecture(tmp_path / "model", "Qwen2"))  # its configuration has no bias for down_proj
    assert folded(model, addition(model), rows, tmp_path, merge=False).ok
    for merge in (lambda: merged_model(fold(addition(model), model)),
                  lambda: plan_merge(addition(model), model.hf, Path(model.name))):  # fmt: skip
        with pytest.raises(UserError, match="use the adapter, which carries it"):
            merge()


def test_in_the_tables_it_is_no_matrix() -> None:
    from iconoclast_tl.report.tables.fidelity import edited_line

    assert edited_line({"residual_fraction": {}, "n_matrices": 1}) == "1 bias edited, no matrix: an addition alone"
    assert "share of the direction left" in edited_line({"residual_fraction": {"a": 0.1}, "n_matrices": 2})


def test_a_skeleton_tells_what_a_model_tells(tmp_path: Path) -> None:
    """`merge` has no weights at hand."""
    from iconoclast_tl.models.config import ModelConfig
    from iconoclast_tl.models.stored import skeleton

    plain, gemma = save_llama(tmp_path / "llama"), save_architecture(tmp_path / "gemma", "Gemma 2")
    vector = torch.eye(24)[0]
    edit = make_addition(Addition(vector, 1, 2.0), 3)
    assert as_writes(edit, skeleton(str(plain), ModelConfig(name=str(plain)))).sites == [Site(0, "mlp_out")]
    with pytest.raises(UserError, match="a norm between"):
        as_writes(edit, skeleton(str(gemma), ModelConfig(name=str(gemma))))
