"""A spec comes back from JSON to the bit, and what names no edit is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from iconoclast_tl.edits.profiles import Kernel
from iconoclast_tl.search.spec import EditSpec

LAYERS = EditSpec(
    point=4.3,
    affine=True,
    row_normalization="pre",
    directions="unfiltered",
    strengths={"attn_out": (0.1, 1 / 3), "mlp_out": (-2e-17, 0.0)},
)
HEADS = replace(LAYERS, point=None, strengths={"attn_out": ((0.1, 0.2), (1 / 3, 0.0)), "mlp_out": (0.7, 0.0)})
KERNEL = Kernel(1.1, 3.3333333333333335, 0.2, 2.0)
KERNELS = replace(LAYERS, affine=False, strengths={"attn_out": KERNEL, "mlp_out": replace(KERNEL, min_weight=1e-300)})
FAMILY = LAYERS.family


@pytest.mark.parametrize("spec", [LAYERS, HEADS, KERNELS, FAMILY], ids=["layers", "heads", "kernels", "family"])
def test_a_spec_comes_back_to_the_bit(spec: EditSpec) -> None:
    text = json.dumps(spec.to_json())
    again = EditSpec.from_json(json.loads(text))
    assert again == spec
    assert json.dumps(again.to_json()) == text
    for component in spec.strengths:
        assert torch.equal(again.strengths_of(component, 2), spec.strengths_of(component, 2))


@pytest.mark.parametrize(
    "change",
    [
        {"point": 4.300000000000001},
        {"point": None},
        {"affine": False},
        {"row_normalization": "none"},
        {"directions": "as set"},
        {"strengths": {"attn_out": [0.1, 1 / 3], "mlp_out": [-2e-17, 1e-300]}},
        {"strengths": {}},
    ],
)
def test_another_spec_is_another(change: dict[str, Any]) -> None:
    assert EditSpec.from_json({**LAYERS.to_json(), **change}) != LAYERS


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"point": float("nan")}, "point"),
        ({"point": -1}, "point"),
        ({"point": "4"}, "point"),
        ({"point": True}, "point"),
        ({"affine": "both"}, "affine"),
        ({"row_normalization": "half"}, "row_normalization"),
        ({"directions": ""}, "directions"),
        ({"strengths": {"attn_out": [1.0]}}, "want attn_out and mlp_out"),
        ({"strengths": {"attn_out": [1.0], "mlp_out": [1.0], "resid_pre": [1.0]}}, "want attn_out and mlp_out"),
        ({"strengths": {"attn_out": [1.0, 2.0], "mlp_out": [1.0]}}, "1 and 2 layers"),
        ({"strengths": {"attn_out": [[1.0, 2.0], [1.0]], "mlp_out": [1.0, 1.0]}}, "ragged"),
        ({"strengths": {"attn_out": [[1.0, 2.0], 1.0], "mlp_out": [1.0, 1.0]}}, "ragged"),
        ({"strengths": {"attn_out": [1.0, float("inf")], "mlp_out": [1.0, 1.0]}}, "finite"),
        ({"strengths": {"attn_out": [1.0, None], "mlp_out": [1.0, 1.0]}}, "finite"),
        ({"strengths": {"attn_out": [], "mlp_out": []}}, "finite"),
        ({"strengths": {"attn_out": {"max_weight": 1.0}, "mlp_out": [1.0]}}, "missing"),
        ({"direction_index": 3.0}, "a spec has"),
    ],
)
def test_what_names_no_edit_is_refused(change: dict[str, Any], said: str) -> None:
    # Types are checked in tests alone, and of a long tuple not every time.
    with pytest.raises((KeyError, TypeError, ValueError), match=f"{said}|Type-check error"):
        EditSpec.from_json({**LAYERS.to_json(), **change})


def test_a_spec_with_a_field_missing_is_refused() -> None:
    for name in LAYERS.to_json():
        with pytest.raises(KeyError, match="a spec has"):
            EditSpec.from_json({key: value for key, value in LAYERS.to_json().items() if key != name})


def test_strengths_of_zero_change_nothing() -> None:
    assert LAYERS.changes
    assert HEADS.changes
    assert KERNELS.changes
    assert not replace(LAYERS, strengths={"attn_out": (0.0, 0.0), "mlp_out": (0.0, -0.0)}).changes
    assert not replace(HEADS, strengths={"attn_out": ((0.0,), (0.0,)), "mlp_out": (0.0, 0.0)}).changes
    flat = Kernel(0.0, 1.0, 0.0, 2.0)
    assert not replace(KERNELS, strengths={"attn_out": flat, "mlp_out": flat}).changes


def test_a_spec_says_its_family() -> None:
    assert str(LAYERS) == str(FAMILY) == "affine, point 4.3, unfiltered"
    assert str(HEADS) == "affine, each layer's own, unfiltered"
    assert str(replace(KERNELS, point=5.0, directions="as set")) == "plain, point 5, as set"
