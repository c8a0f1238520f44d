"""Whatever the depth and the dtype, a right fold passes, and a missing module or a strength 5% off does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from experiments.fidelity import depth
from iconoclast_tl.architecture.hook_points import hf_sites
from iconoclast_tl.architecture.sites import Site
from iconoclast_tl.doctor.checks import Kind, random_edit
from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.edits.hooks import preview
from iconoclast_tl.folding import by_module
from iconoclast_tl.folding.by_module import module_check, previewed_modules
from iconoclast_tl.folding.fold import fold
from iconoclast_tl.folding.merge import merged_model
from iconoclast_tl.folding.rounding import epsilon, last_bits_moved, rounding_tolerance
from iconoclast_tl.models.model import Model

ROWS = [[5, 6, 7, 8, 9], [10, 11, 12]]
EVERY_LAYER = Kind(name="every layer", n_layers=None)


@pytest.mark.parametrize(
    ("n_layers", "dtype"), [(3, "float32"), (6, "float16"), (12, "float32"), (24, "bfloat16"), (48, "float32")]
)
def test_right_folds_pass_and_wrong_ones_are_found_out(n_layers: int, dtype: str) -> None:
    """All depths in all dtypes, with every layer edited: `make bench-fidelity`."""
    found = depth.agreements(depth.random_model(n_layers, 32, dtype), edited=3, merge=False)
    right, missing, off = (found[name] for name in ("right", "missing", "5% off"))
    assert right.ok
    assert right.adapter_by_module.max_relative_error < 1e-4
    assert not missing.ok
    assert not off.ok
    assert missing.adapter_by_module.max_relative_error == pytest.approx(1, rel=1e-3)
    assert off.adapter_by_module.max_relative_error == pytest.approx(0.05, rel=1e-2)
    assert missing.adapter_by_module.module == off.adapter_by_module.module
    if dtype == "float32":
        assert not missing.preview_vs_adapter.ok
        assert not off.preview_vs_adapter.ok
    if n_layers == 48:  # the negative controls: what rounding explains is more than a tolerance fixed for 3 layers,
        assert right.preview_vs_adapter.tolerance > 2 * depth.FIXED
    if dtype == "bfloat16":  # and logits alone do not tell
        assert off.preview_vs_adapter.ok


def test_the_command_prints_every_case_and_tells_by_its_exit_status(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ["--layers", "2", "--width", "32", "--dtypes", "float32"]
    depth.main(few)
    rows = [line.split(" | ")[2] for line in capsys.readouterr().out.splitlines() if line.startswith("| float32")]
    assert rows == ["right", "missing", "5% off"]
    monkeypatch.setattr(depth, "cases", lambda edit: dict.fromkeys(rows, edit))  # none is wrong
    with pytest.raises(SystemExit) as ended:
        depth.main(few)
    assert ended.value.code == 1


def noise(model: Model, edit: Edit, eps: float) -> float:
    sites, ids = hf_sites(model.hf), torch.tensor(ROWS[:1])
    with torch.no_grad(), preview(edit, sites):
        expected = model.hf(ids).logits
        with last_bits_moved([sites[site].module for site in edit.sites], eps):
            moved = model.hf(ids).logits
        assert torch.equal(model.hf(ids).logits, expected)  # nothing is left behind
    return float((moved - expected).abs().max())


def test_the_noise_is_the_models_own(llama: Model) -> None:
    edit = random_edit(llama, EVERY_LAYER)
    fine, coarse = (noise(llama, edit, torch.finfo(dtype).eps) for dtype in (torch.float32, torch.bfloat16))
    assert noise(llama, edit, torch.finfo(torch.float32).eps) == fine > 0  # the same every time
    assert 1e4 < coarse / fine < 1e6  # 2^16 but for rounding
    head = llama.hf.lm_head.weight
    head *= 8  # exactly: a power of two
    assert noise(llama, edit, torch.finfo(torch.float32).eps) == 8 * fine


def test_every_element_moves_to_a_neighbouring_number() -> None:
    linear = nn.Linear(8, 512).to(torch.bfloat16)
    x = torch.ones(1, 8, dtype=torch.bfloat16)
    before = linear(x)
    with last_bits_moved([linear], torch.finfo(torch.bfloat16).eps):
        after = linear(x)
    steps = (after.view(torch.int16).int() - before.view(torch.int16).int()).abs()
    assert set(steps.unique().tolist()) <= {0, 1}  # 0: a power of two, between whose neighbours the step is
    assert float((steps == 1).float().mean()) > 0.9


def test_a_tolerance_is_never_less_than_roundings_of_a_logit() -> None:
    assert rounding_tolerance(0.0, torch.float32, 8.0) == 10 * 2.0**-20
    assert rounding_tolerance(1e-3, torch.float32, 8.0) == 1e-2
    assert not rounding_tolerance(float("nan"), torch.float32, 8.0) >= 0.0


def test_products_in_tf32_are_as_coarse_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    assert epsilon(torch.float32) == 2.0**-23
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert epsilon(torch.float32) == 2.0**-10
    assert epsilon(torch.bfloat16) == 2.0**-7


def weakened(edit: Edit, site: Site, strength: float) -> Edit:
    strengths = {name: values.clone() for name, values in edit.strengths.items()}
    strengths[site.component][:, site.layer] = strength
    return replace(edit, strengths=strengths)


def test_an_edit_that_does_next_to_nothing_somewhere_is_no_mistake(llama: Model, tmp_path: Path) -> None:
    """Merged weights keep 1e-7 of a matrix in the rounding of their last bits, or lose it."""
    edit = weakened(random_edit(llama, EVERY_LAYER), Site(1, "attn_out"), 1e-7)
    merged = merged_model(fold(edit, llama))
    found = module_check(previewed_modules(edit, llama, ROWS), merged.get_submodule, torch.float32)
    assert found.ok
    assert found.module == "model.layers.1.self_attn.o_proj"
    assert 1e-3 < found.max_relative_error < found.tolerance


def test_weights_of_another_edit_are_found_out_in_the_module_that_differs(llama: Model) -> None:
    edit = random_edit(llama, EVERY_LAYER)
    expected = previewed_modules(edit, llama, ROWS)
    assert {one.path for one in expected} == {change.matrix.module for change in fold(edit, llama).changes}
    for site in edit.sites:
        strength = float(edit.strengths[site.component][0, site.layer])
        for factor, error in ((1.05, 0.05), (0.95, 0.05), (0.0, 1.0), (-1.0, 2.0)):
            wrong = merged_model(fold(weakened(edit, site, factor * strength), llama))
            found = module_check(expected, wrong.get_submodule, torch.float32)
            assert not found.ok
            assert found.max_relative_error == pytest.approx(error, rel=1e-3)
            assert found.module.startswith(f"model.layers.{site.layer}.")
    base = module_check(expected, llama.hf.get_submodule, torch.float32)
    assert base.max_relative_error == pytest.approx(1, rel=1e-5)


def test_a_module_that_writes_nan_is_no_agreement(llama: Model) -> None:
    edit = random_edit(llama, EVERY_LAYER)
    merged = merged_model(fold(edit, llama))
    merged.get_submodule("model.layers.0.mlp.down_proj").weight[0, 0] = float("nan")
    found = module_check(previewed_modules(edit, llama, ROWS), merged.get_submodule, torch.float32)
    assert not found.ok
    assert found.module == "model.layers.0.mlp.down_proj"


def test_where_modules_cannot_be_widened_their_own_rounding_is_allowed(
    llama: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of an offloaded model."""
    monkeypatch.setattr(by_module, "_widened", lambda module: module)
    edit = random_edit(llama, EVERY_LAYER)
    expected = previewed_modules(edit, llama, ROWS)
    assert not any(one.exact for one in expected)
    right, wrong = (merged_model(fold(one, llama)) for one in (edit, depth.cases(edit)["5% off"]))
    assert module_check(expected, right.get_submodule, torch.float32).ok
    assert not module_check(expected, wrong.get_submodule, torch.float32).ok
