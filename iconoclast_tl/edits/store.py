"""The files of an edit: `edit.safetensors`, which is read, and `edit.json`, which says the same to people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from iconoclast_tl.architecture.sites import Component
from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.storage import read_tensors, write_json, write_tensors

COMPONENTS: tuple[Component, ...] = get_args(Component)


def save_edit(folder: Path, edit: Edit, provenance: Mapping[str, Any]) -> None:
    """Write both files; `provenance` says how the edit came about."""
    about = {
        "row_normalization": edit.row_normalization,
        "rank": edit.rank,
        "keep_norm": edit.keep_norm,
        "provenance": dict(provenance),
    }
    readable = {
        "digest": edit.digest(),
        "scope": edit.scope,
        "affine": edit.is_affine,
        "n_layers": edit.n_layers,
        "d_model": edit.directions.shape[-1],
        "strengths": {name: values.tolist() for name, values in edit.strengths.items()},
        **({} if edit.experts is None else {"experts": edit.experts.tolist()}),
        **{f"parts of {name}": values.tolist() for name, values in edit.parts.items()},
        **{f"added at {site}, norm": float(edit.shifts[site.component][site.layer].norm()) for site in edit.shifted},
    }
    write_tensors(folder / "edit.safetensors", edit.tensors(), about)
    write_json(folder / "edit.json", {**about, **readable})


def load_edit(path: Path, n_layers: int, d_model: int) -> tuple[Edit, dict[str, Any]]:
    """Read `(edit, provenance)`; `UserError` where it is missing or belongs to a model of another shape."""
    if not path.exists():
        raise UserError(
            f"there is no edit at {path}", mend="run `iconoclast-tl search` into this folder first, or `preview --keep`"
        )
    tensors, about = read_tensors(path)
    if "directions" not in tensors or "row_normalization" not in about:
        raise UserError(f"{path} holds no edit", got=", ".join(tensors), want="an edit.safetensors of this tool")
    _, layers, width = tensors["directions"].shape
    if (layers, width) != (n_layers, d_model):
        raise UserError(
            f"the edit in {path} is of another model",
            got=f"{layers} layers, d_model {width}",
            want=f"{n_layers} layers, d_model {d_model}",
        )
    edit = Edit(
        directions=tensors["directions"],
        strengths={name: tensors[f"strengths.{name}"] for name in COMPONENTS if f"strengths.{name}" in tensors},
        centres={name: tensors[f"centres.{name}"] for name in COMPONENTS if f"centres.{name}" in tensors},
        row_normalization=about["row_normalization"],
        rank=about["rank"],
        gains={name: tensors[f"gains.{name}"] for name in COMPONENTS if f"gains.{name}" in tensors},
        experts=tensors.get("experts"),
        parts={name: tensors[f"parts.{name}"] for name in COMPONENTS if f"parts.{name}" in tensors},
        shifts={name: tensors[f"shifts.{name}"] for name in COMPONENTS if f"shifts.{name}" in tensors},
        keep_norm=about.get("keep_norm", False),  # files of earlier versions do not say
    )
    return edit, about["provenance"]
