"""The preview: exact on what sites write, invisible before and after."""

from __future__ import annotations

import pytest
import torch

from iconoclast_tl.architecture.hook_points import bridge_sites, hf_sites
from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.edits.hooks import preview
from iconoclast_tl.models.model import Model
from iconoclast_tl.models.twin import Twin, make_twin
from tests.edits.edits import project, random_edit, scaled
from tests.reference.edits import edited_write

IDS = torch.arange(4, 16).reshape(2, 6)


def logits(model: Model) -> torch.Tensor:
    with torch.no_grad():
        return model.hf(IDS).logits


def recorded(model: Model, edit: Edit) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """At every site under the preview: what comes in and what goes out of the projection."""
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    handles = []
    sites = hf_sites(model.hf)
    before: dict[str, torch.Tensor] = {}
    for site in edit.sites:
        if sites[site].on == "output":
            module = sites[site].module
            handles.append(
                module.register_forward_hook(lambda m, a, y, key=str(site): before.__setitem__(key, y.clone()))
            )
    with preview(edit, sites):
        for site in edit.sites:
            if sites[site].on == "output":
                module = sites[site].module
                handles.append(
                    module.register_forward_hook(
                        lambda m, a, y, key=str(site): found.__setitem__(key, (before[key], y.clone()))
                    )
                )
        logits(model)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("k", [1, 3])
def test_every_site_writes_what_the_reference_loop_says(llama: Model, affine: bool, k: int) -> None:
    edit = random_edit(k=k, affine=affine)
    found = recorded(llama, edit)
    assert len(found) == len(edit.sites) == 5
    for site in edit.sites:
        y, edited = found[str(site)]
        at = edit.at(site)
        expected = edited_write(y, at.directions, at.strengths, at.centres)
        assert torch.allclose(edited, expected, atol=1e-5), site
        assert not torch.allclose(edited, y, atol=1e-3)


def test_strength_one_leaves_nothing_along_the_direction_and_affine_leaves_the_centre() -> None:
    edit = scaled(random_edit(), 0)
    ones = {name: torch.ones_like(values) for name, values in edit.strengths.items()}
    y = torch.randn(4, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    site = random_edit().sites[0]
    plain = Edit(directions=edit.directions.double(), strengths={n: v.double() for n, v in ones.items()}).at(site)
    assert float((project(y, plain) @ plain.directions.T).abs().max()) < 1e-6  # v is a unit vector to float32 rounding
    centre = Edit(
        directions=edit.directions, strengths=ones, centres={n: torch.full_like(v, 0.7) for n, v in ones.items()}
    ).at(site)
    assert torch.allclose(project(y.float(), centre) @ centre.directions.T, torch.tensor(0.7), atol=1e-5)
    assert float((y @ plain.directions.T).abs().max()) > 1e-1


@pytest.mark.parametrize("options", [{}, {"stream": True}, {"row_normalization": "pre"}, {"row_normalization": "full"}])
def test_logits_are_bit_equal_after_leaving_and_after_an_exception(llama: Model, options: dict) -> None:
    base, edit = logits(llama), random_edit(**options)
    with preview(edit, hf_sites(llama.hf)):
        assert not torch.allclose(logits(llama), base, atol=1e-3)
    assert torch.equal(logits(llama), base)
    with pytest.raises(RuntimeError, match="inside"), preview(edit, hf_sites(llama.hf)):
        raise RuntimeError("inside")
    assert torch.equal(logits(llama), base)


def test_a_preview_that_cannot_be_attached_leaves_nothing_behind(llama: Model) -> None:
    sites = hf_sites(llama.hf)
    edit = random_edit()
    del sites[edit.sites[-1]]
    with pytest.raises(KeyError), preview(edit, sites):
        pass
    assert not any(module._forward_hooks for module in llama.hf.modules())


def test_strength_zero_is_the_identity_to_the_bit(llama: Model) -> None:
    base = logits(llama)
    with preview(scaled(random_edit(), 0), hf_sites(llama.hf)):
        assert torch.equal(logits(llama), base)


@pytest.mark.parametrize("stream", [False, True])
def test_hook_points_and_hugging_face_modules_preview_the_same(llama: Model, stream: bool) -> None:
    twin = make_twin(llama)
    assert isinstance(twin, Twin)
    edit = random_edit(k=2, stream=stream)
    with preview(edit, hf_sites(llama.hf)):
        expected = logits(llama)
    with torch.no_grad(), preview(edit, bridge_sites(twin.bridge)):
        found = twin.bridge(IDS, return_type="logits")
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(twin.bridge(IDS, return_type="logits"), expected, atol=1e-3)


def test_the_stream_scope_leaves_nothing_of_the_direction_in_the_stream(llama: Model) -> None:
    vector = torch.nn.functional.normalize(torch.randn(24, generator=torch.Generator().manual_seed(5)), dim=0)
    ones = torch.ones(1, 3)
    names = ("attn_out", "mlp_out", "resid_pre")
    shares = {}
    for scope in ("writers", "stream"):
        strengths = dict.fromkeys(names if scope == "stream" else names[:2], ones)
        with (
            preview(Edit(directions=vector.expand(1, 3, -1), strengths=strengths), hf_sites(llama.hf)),
            torch.no_grad(),
        ):
            states = llama.hf(IDS, output_hidden_states=True).hidden_states
        # the input of layer 2, as the layer before left it
        shares[scope] = float((states[2] @ vector).abs().max())
    assert shares["stream"] < 1e-5
    assert shares["writers"] > 1e-2  # the embedding's part stays: not foldable into the writers


def test_half_precision_is_projected_in_float32_and_returned_in_half() -> None:
    edit = random_edit().at(random_edit().sites[0])
    y = torch.randn(8, 24, generator=torch.Generator().manual_seed(2)).bfloat16() * 100
    found = project(y, edit)
    assert found.dtype == torch.bfloat16
    exact = project(y.double(), edit).bfloat16()
    assert torch.equal(found, exact)
    v = edit.directions.bfloat16()
    crude = y - ((y @ v.T) * edit.strengths.bfloat16()) @ v
    assert not torch.equal(crude, exact)
