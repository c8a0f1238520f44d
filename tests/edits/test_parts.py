"""Single heads and neurons: the fold stays one of columns, and slicing what the projection writes would be wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from iconoclast_tl.architecture.hook_points import hf_sites
from iconoclast_tl.architecture.parts import head_factors, neuron_factors, neurons, query_heads
from iconoclast_tl.architecture.post_norm import post_norm_gains
from iconoclast_tl.architecture.reading import read_along
from iconoclast_tl.architecture.sites import WRITERS, Component, Site
from iconoclast_tl.architecture.writers import require_writers
from iconoclast_tl.doctor.checks import Kind, fold_check, random_edit
from iconoclast_tl.edits.config import EditConfig
from iconoclast_tl.edits.edit import Edit, make_edit
from iconoclast_tl.edits.ground import Ground
from iconoclast_tl.edits.hooks import hooked, preview
from iconoclast_tl.edits.store import load_edit, save_edit
from iconoclast_tl.edits.updates import edit_updates, stack_updates
from iconoclast_tl.folding.fold import fold
from iconoclast_tl.folding.merge import merged_model
from iconoclast_tl.folding.merge_files import merge_files, plan_merge
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.config import ModelConfig
from iconoclast_tl.models.load import load_model
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.tokens import left_pad
from tests.activations.last_position import collect_last_position
from tests.architectures import save_architecture

NAMES = (
    "Llama", "Llama, biases", "Falcon3 (Llama)", "Yi, SmolLM2 (Llama)", "Falcon (7B layout)", "Falcon (new decoder)",
    "GPT-2", "GPT-NeoX", "Phi-3", "OPT", "Gemma 2",
)  # fmt: skip
"""Grouped, single and full heads, fused queries, heads wider than d_model / n_heads, biases, Conv1D, flattened rows."""


FEW = ("Llama, biases", "Falcon3 (Llama)", "GPT-2", "OPT", "Gemma 2")
"""Of these, where it takes longer."""


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest, tmp_path: Path, load: Callable[..., Model]) -> Model:
    return load(save_architecture(tmp_path / "model", request.param))


def logits(model: Model, rows: list[list[int]]) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.hf(**model.inputs(left_pad(rows, model.pad_id))).logits
    return found


def under(edit: Edit, model: Model, rows: list[list[int]]) -> Tensor:
    with preview(edit, hf_sites(model.hf)):
        return logits(model, rows)


def oracle(edit: Edit, component: str, model: Model, rows: list[list[int]]) -> Tensor:
    """A loop: every part's own contribution to what is written, W_p x_p, projected by its own strength."""
    handles = []
    for site, writer in require_writers(model.hf).items():
        if site.component == component:
            weight, bias = writer.matrices[0].read(model.hf)
            hook = _project(edit, site, weight[0], None if bias is None else bias[0])
            handles.append(model.hf.get_submodule(writer.module).register_forward_hook(hook))
    try:
        return logits(model, rows)
    finally:
        for handle in handles:
            handle.remove()


def _project(edit: Edit, site: Site, weight: Tensor, bias: Tensor | None) -> Callable[..., Tensor]:
    at, factors = edit.at(site), edit.parts[site.component][site.layer]
    v, strength, width = at.directions[0], at.strengths[0], weight.shape[1] // len(factors)
    centres = edit.own_centres(site)[0]

    def hook(module: torch.nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        result = output.clone()
        for part, factor in enumerate(factors):
            columns = slice(part * width, (part + 1) * width)
            written = args[0][..., columns] @ weight[:, columns].T
            result -= strength * factor * (written @ v - centres[part])[..., None] * v
        return result if bias is None else result - strength * factors.mean() * (bias @ v) * v

    return hook


@pytest.mark.parametrize(("component", "affine"), [("attn_out", True), ("attn_out", False), ("mlp_out", True)])
def test_each_part_is_projected_by_its_own_strength(
    model: Model, rows: list[list[int]], component: Component, affine: bool
) -> None:
    edit = random_edit(model, Kind(name="parts", components=(component,), affine=affine, parts=True, n_layers=None))
    assert edit.is_affine == affine
    if "Gemma2" in type(model.hf).__name__:
        assert edit.gains  # the directions of the site are weighted; the oracle takes them from it
    found = under(edit, model, rows)
    assert torch.allclose(found, oracle(edit, component, model, rows), atol=2e-5)
    whole = replace(edit, parts={component: torch.ones_like(edit.parts[component])})
    assert not torch.allclose(found, under(whole, model, rows), atol=1e-3)


def test_factors_of_one_are_the_plain_edit_and_of_zero_none(model: Model, rows: list[list[int]]) -> None:
    for component, sizes in (("attn_out", query_heads(model.hf)), ("mlp_out", neurons(model.hf))):
        edit = random_edit(model, Kind(name="plain", components=(component,), n_layers=None))
        ones = torch.ones(model.n_layers, sizes[0])
        assert torch.allclose(
            under(replace(edit, parts={component: ones}), model, rows), under(edit, model, rows), atol=1e-5
        )
        assert not replace(edit, parts={component: 0 * ones}).sites


def test_slices_of_what_is_written_are_no_heads(llama: Model, rows: list[list[int]]) -> None:
    """The well-known mistake: rows of W (what it writes) in the place of columns (what it reads)."""
    edit = random_edit(llama, Kind(name="heads", components=("attn_out",), parts=True, n_layers=None))
    merged = merged_model(fold(edit, llama))
    expected = under(edit, llama, rows)
    with torch.no_grad():
        right = merged(**llama.inputs(left_pad(rows, llama.pad_id))).logits
        for layer, decoder in enumerate(merged.model.layers):
            base = llama.hf.model.layers[layer].self_attn.o_proj.weight
            v, strength = edit.directions[0, layer], edit.strengths["attn_out"][0, layer]
            of_row = edit.parts["attn_out"][layer].repeat_interleave(llama.d_model // 4)
            decoder.self_attn.o_proj.weight.copy_(base - strength * torch.outer(v * of_row, v @ base))
        wrong = merged(**llama.inputs(left_pad(rows, llama.pad_id))).logits
    assert torch.allclose(right, expected, atol=1e-5)
    assert not torch.allclose(wrong, expected, atol=1e-2)


def test_candidates_of_one_batch_keep_their_own_heads(model: Model, rows: list[list[int]]) -> None:
    sites, rows = hf_sites(model.hf), [row[:5] for row in rows[:3]]
    kinds = (
        Kind(name="both", components=("attn_out", "mlp_out"), parts=True),
        Kind(name="affine", components=("attn_out", "mlp_out"), affine=True, parts=True),
        Kind(name="neurons", components=("mlp_out",), parts=True),
    )
    edits = [random_edit(model, kind, seed=seed) for seed, kind in enumerate(kinds)]
    with hooked(stack_updates([edit_updates(edit, sites) for edit in edits]), sites) as assigned:
        assigned.candidates = torch.arange(3).repeat_interleave(len(rows))
        together = logits(model, [*rows, *rows, *rows]).chunk(3)
    for found, edit in zip(together, edits, strict=True):
        assert torch.allclose(found, under(edit, model, rows), atol=2e-5)


@pytest.mark.parametrize("model", FEW, indirect=True)
@pytest.mark.parametrize("affine", [False, True])
def test_adapter_and_files_hold_single_heads_and_neurons(
    model: Model, rows: list[list[int]], load: Callable[..., Model], tmp_path: Path, affine: bool
) -> None:
    kind = Kind(name="heads", components=("attn_out", "mlp_out"), affine=affine, parts=True)
    check = fold_check(model, rows, kind, saved=False)
    assert check.ok, check
    edit = random_edit(model, kind)
    if "adapter only" in check.note:
        return  # no bias there that merged weights could carry
    merge_files(plan_merge(edit, model.hf, Path(model.name)), tmp_path / "merged")
    expected = merged_model(fold(edit, model)).state_dict()
    found = load(tmp_path / "merged").hf.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_heads_are_previewed_on_quantised_weights(llama: Model, rows: list[list[int]]) -> None:
    """The linear itself is run once more: no weight is read."""
    model = load_model(ModelConfig(name=llama.name, dtype="float32", device="cpu", quantization="4bit"))
    edit = random_edit(llama, Kind(name="heads", components=("attn_out",), parts=True, n_layers=None))
    ones = replace(edit, parts={"attn_out": torch.ones_like(edit.parts["attn_out"])})
    assert torch.allclose(under(ones, model, rows), under(replace(edit, parts={}), model, rows), atol=1e-4)
    assert not torch.allclose(under(edit, model, rows), under(ones, model, rows), atol=1e-3)


def test_an_edit_keeps_its_heads_on_disk(llama: Model, tmp_path: Path) -> None:
    edit = random_edit(llama, Kind(name="heads", components=("attn_out",), parts=True))
    save_edit(tmp_path, edit, {})
    found, _ = load_edit(tmp_path / "edit.safetensors", llama.n_layers, llama.d_model)
    assert torch.equal(found.parts["attn_out"], edit.parts["attn_out"])
    assert found.digest() == edit.digest() != replace(edit, parts={}).digest()


@pytest.mark.parametrize("model", FEW, indirect=True)
@pytest.mark.parametrize("component", ["attn_out", "mlp_out"])
def test_the_centres_of_all_parts_are_the_centre_of_the_whole(
    model: Model, rows: list[list[int]], component: Component
) -> None:
    """With means that were measured: all heads of strength λ are the affine edit of the site."""
    measured = collect_last_position(model, None, rows, 4)
    writes, reads = ({name: one.mean for name, one in kind.items()} for kind in (measured.writes, measured.reads))
    sites, ones = hf_sites(model.hf), {"attn_out": query_heads(model.hf)[0], "mlp_out": neurons(model.hf)[0]}
    vectors = torch.randn(2, model.n_layers, model.d_model, generator=torch.Generator().manual_seed(0))
    strengths = {name: torch.full((model.n_layers,), 0.7 * (name == component)) for name in WRITERS}
    whole = Ground(neutral_writes=writes, neutral_reads=reads, gains=post_norm_gains(model.hf))
    parts = replace(whole, parts={component: torch.ones(model.n_layers, ones[component])}, sites=sites)
    edits = [make_edit(vectors, strengths, EditConfig(affine=True), ground) for ground in (whole, parts)]
    assert torch.allclose(edits[1].centres[component].sum(-1), edits[0].centres[component], atol=1e-5)
    assert torch.allclose(under(edits[1], model, rows), under(edits[0], model, rows), atol=2e-5)
    plain = make_edit(vectors, strengths, EditConfig(), parts)
    assert not torch.allclose(under(plain, model, rows), under(edits[0], model, rows), atol=1e-3)


@pytest.mark.parametrize("quantization", ["none", "4bit", "8bit"])
def test_what_a_linear_reads_is_the_same_by_its_weights_and_through_it(llama: Model, quantization: str) -> None:
    model = load_model(ModelConfig(name=llama.name, dtype="float32", device="cpu", quantization=quantization))
    linear = model.hf.model.layers[1].self_attn.o_proj
    vectors = torch.randn(2, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        weight = linear(torch.eye(linear.in_features)).T
    # 8 bits: the identity, too, is rounded on its way in.
    assert torch.allclose(read_along(linear, vectors).weight, vectors @ weight.float(), atol=1e-3)


def test_heads_and_neurons_take_no_row_norms_and_dense_layers(
    llama: Model, tmp_path: Path, load: Callable[..., Model]
) -> None:
    with pytest.raises(UserError, match="single heads and neurons take edits without row normalisation"):
        replace(random_edit(llama, Kind(name="rows", row_normalization="pre")), parts={"attn_out": torch.ones(3, 4)})
    mixtral = load(save_architecture(tmp_path / "mixtral", "Mixtral"))
    edit = replace(
        random_edit(mixtral, Kind(name="MLP", components=("mlp_out",))), parts={"mlp_out": torch.ones(3, 16)}
    )
    with pytest.raises(UserError, match=r"single neurons cannot be edited at 0\.mlp_out"):
        fold(edit, mixtral)
    with pytest.raises(ValueError, match="need the linear"):
        under(edit, mixtral, [[5, 6]])


def test_heads_and_neurons_are_named_by_layer_and_number(llama: Model) -> None:
    assert head_factors(["0.1", "2.3"], llama.hf).nonzero().tolist() == [[0, 1], [2, 3]]
    assert neuron_factors(["1.39"], llama.hf).nonzero().tolist() == [[1, 39]]
    with pytest.raises(UserError, match=r"there is no head 0\.4: want layer\.head: 0\.0 to 0\.3"):
        head_factors(["0.4"], llama.hf)
    with pytest.raises(UserError, match=r"no neuron 3\.0"):
        neuron_factors(["3.0"], llama.hf)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("component", ["attn_out", "mlp_out"])
def test_an_edit_is_made_of_a_strength_for_every_part(
    biased: Model, rows: list[list[int]], component: Component, affine: bool
) -> None:
    """λ[layer, part], by the loop over parts; those that are not meant stay as they are, whatever their λ."""
    measured = collect_last_position(biased, None, rows, 4)
    writes, reads = ({name: one.mean for name, one in kind.items()} for kind in (measured.writes, measured.reads))
    n_parts = {"attn_out": query_heads(biased.hf)[0], "mlp_out": neurons(biased.hf)[0]}[component]
    generator = torch.Generator().manual_seed(2)
    own = torch.rand(biased.n_layers, n_parts, generator=generator) + 0.3
    strengths = {name: own if name == component else torch.zeros(biased.n_layers) for name in WRITERS}
    vectors = torch.randn(1, biased.n_layers, biased.d_model, generator=generator)
    ground = Ground(neutral_writes=writes, neutral_reads=reads, sites=hf_sites(biased.hf))
    edit = make_edit(vectors, strengths, EditConfig(affine=affine), ground)
    assert torch.equal(edit.parts[component], own)
    assert torch.equal(edit.strengths[component], torch.ones(1, biased.n_layers))
    assert torch.allclose(under(edit, biased, rows), oracle(edit, component, biased, rows), atol=2e-5)
    swapped = make_edit(vectors, {**strengths, component: own.flip(1)}, EditConfig(affine=affine), ground)
    assert not torch.allclose(under(swapped, biased, rows), under(edit, biased, rows), atol=1e-3)

    mask = torch.ones(biased.n_layers, n_parts)
    mask[0], mask[1, 2] = 0.0, 0.0
    some = make_edit(vectors, strengths, EditConfig(affine=affine), replace(ground, parts={component: mask}))
    assert torch.equal(some.parts[component], own * mask)
    assert some.sites == [site for site in edit.sites if site.layer > 0]
    by_hand = replace(some, strengths=edit.strengths, parts={component: own * mask})
    assert torch.equal(under(some, biased, rows), under(by_hand, biased, rows))


def test_one_strength_for_all_parts_is_that_of_the_layer(llama: Model, rows: list[list[int]]) -> None:
    vectors = torch.randn(1, llama.n_layers, llama.d_model, generator=torch.Generator().manual_seed(3))
    per_layer = torch.tensor([0.7, 0.0, 1.2])
    mlp = torch.full((llama.n_layers,), 0.4)
    heads = per_layer[:, None].expand(-1, query_heads(llama.hf)[0])
    whole, parts = (
        make_edit(vectors, {"attn_out": given, "mlp_out": mlp}, EditConfig()) for given in (per_layer, heads)
    )
    assert parts.sites == whole.sites
    assert torch.allclose(under(parts, llama, rows), under(whole, llama, rows), atol=2e-5)
    left = make_edit(vectors, {"attn_out": heads, "mlp_out": mlp}, EditConfig(attention_only=True))
    assert {site.component for site in left.sites} == {"attn_out"}
