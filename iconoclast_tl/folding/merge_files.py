"""A fold as plain weights, file by file: the model is not loaded, so that it may be larger than memory.

The base model's files are copied, and every edited matrix is read, edited in float32 at least, rounded once to the
dtype in which it is stored, and written in its place. At no time is more than one matrix in memory.

A layer without a bias cannot carry β. Where the configuration can switch biases on (`folding.merge`), they come in a
file of their own beside the others, zero everywhere else.
"""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from iconoclast_tl.architecture.sites import Site
from iconoclast_tl.architecture.writers import Matrix, Writer, require_writers
from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.edits.factors import Along, along, factors
from iconoclast_tl.folding.additions import as_writes
from iconoclast_tl.folding.fold import nothing_edited, require_carried, require_foldable, require_one_linear
from iconoclast_tl.folding.merge import BIAS_FLAGS, added_biases, apply_factors, require_mergeable_bias
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.progress import Track, silent
from iconoclast_tl.foundation.storage import read_json, replacing_folder, write_json
from iconoclast_tl.models.source import INDEX, SINGLE
from iconoclast_tl.models.stored import COPIED, StoredTensor, stored_parameters, weight_files

BIASES: Final = "model-biases.safetensors"
"""Where biases go that the base model lacks."""


@dataclass(frozen=True, kw_only=True)
class StoredPart:
    """One matrix (one expert's, where there are several) and where it is stored."""

    site: Site
    matrix: Matrix
    weight: StoredTensor
    bias: StoredTensor | None
    expert: int | None
    """The number of the routed expert; None for what is none."""
    slice: int | None
    """Which entry of the stored tensors it is; None where it is all of them."""


@dataclass(frozen=True)
class FileMerge:
    """What is to be merged, found to be possible before anything is written."""

    edit: Edit
    source: Path
    parts: tuple[StoredPart, ...]
    zeros: Mapping[str, tuple[int, ...]]
    """Biases that the configuration has to be given, and their shapes; empty where it has all that change."""

    @property
    def dtype(self) -> torch.dtype:
        """The narrowest in which an edited matrix is stored."""
        return min((part.weight.dtype for part in self.parts), key=lambda dtype: dtype.itemsize)


def plan_merge(edit: Edit, hf: Any, source: Path) -> FileMerge:
    """Where the files of `source` hold what `edit` changes; `hf` is its model, weights or not (`models.stored`).

    Raises `UserError` for what cannot be folded (`require_foldable`, `as_writes`, `require_carried`), for matrices that
    the files hold in a way that cannot be edited in place, and for a bias that the architecture cannot have.
    """
    require_foldable(edit)
    edit = as_writes(edit, hf)
    known = require_writers(hf, edit.components)
    writers = {site: known[site] for site in edit.sites}
    constant = {site: writer for site, writer in writers.items() if edit.at(site).adds_constant}
    require_carried(constant, True, edit.row_normalization)
    require_carried(writers, False, edit.row_normalization)
    for site, writer in writers.items():
        require_one_linear(edit, site, writer)
    lacks_bias = any(matrix.bias is None for writer in constant.values() for matrix in writer.matrices)
    if lacks_bias:
        require_mergeable_bias(hf, constant.values())
    parts = [part for part in stored_parts(writers, hf, source) if _is_edited(edit, part)]
    if not parts:
        raise nothing_edited()
    return FileMerge(edit, source, tuple(parts), added_biases(hf) if lacks_bias else {})


def stored_parts(writers: Mapping[Site, Writer], hf: Any, source: Path) -> list[StoredPart]:
    """Where the files of `source` hold these writers; `UserError` where not in a way that can be edited in place."""
    stored = stored_parameters(hf, source)
    return [
        part
        for site, writer in writers.items()
        for matrix in writer.matrices
        for part in _parts(site, matrix, stored, hf)
    ]


def _is_edited(edit: Edit, part: StoredPart) -> bool:
    """Whether it is no expert that is left alone."""
    return part.expert is None or bool(edit.at(part.site).of_expert(part.expert).strengths.any())


def merge_files(plan: FileMerge, folder: Path, track: Track = silent) -> dict[str, float]:
    """Write the merged model into `folder`, atomically; returns ‖VW'‖/‖VW‖ of every edited parameter, by its path.

    Takes the room of the base model on the disk, beside what is in `folder` until it is done.
    """
    left: dict[str, Along] = {}
    with replacing_folder(folder) as temporary:
        files = _copied(plan.source)
        for file in track(files, "copy", len(files)):
            shutil.copyfile(plan.source / file, temporary / file)
        added = {}
        for part in track(plan.parts, "merge", len(plan.parts)):
            share, bias = _merge_part(plan.edit, part, plan.source, temporary)
            if len(plan.edit.at(part.site).directions):  # an addition alone takes nothing out
                name = part.matrix.path.removesuffix(".weight")
                left[name] = left.get(name, Along()) + share
            if bias is not None:
                added[f"{part.matrix.module}.bias"] = bias
        if plan.zeros:
            _add_biases(temporary, plan, added)
    return {path: found.share_left for path, found in left.items()}


def _parts(site: Site, matrix: Matrix, stored: Mapping[str, tuple[StoredTensor, ...]], hf: Any) -> Iterator[StoredPart]:
    shape, n = tuple(hf.get_parameter(matrix.path).shape), matrix.n_experts
    weights, biases = stored.get(matrix.path, ()), stored.get(matrix.bias_path or "", ())
    whole = len(weights) == 1 and weights[0].shape == shape
    apart = n is not None and len(weights) == n and all(one.shape == shape[1:] for one in weights)
    bias_kept = len(biases) == (1 if matrix.bias else 0) and (whole or not matrix.bias)
    if not (whole or apart) or not bias_kept:
        raise UserError(
            f"{matrix.path} cannot be edited in the files of {type(hf).__name__}",
            got=", ".join(str(one.shape) for one in weights[:3]) or "no floating-point tensor that holds it unchanged",
            want=f"one tensor {shape}" if n is None else f"{n} experts, or one tensor {shape}",
            mend="use the adapter, which carries the edit",
        )
    for expert in range(n or 1):
        weight = weights[0] if whole else weights[expert]
        bias = biases[0] if biases else None
        yield StoredPart(
            site=site,
            matrix=matrix,
            weight=weight,
            bias=bias,
            expert=expert if n else None,
            slice=expert if whole and n else None,
        )


def _merge_part(edit: Edit, part: StoredPart, source: Path, target: Path) -> tuple[Along, Tensor | None]:
    """What is left of the directions, and b' where the files have no bias to hold it."""
    at, turned = edit.at(part.site), part.matrix.transposed
    at = at if part.expert is None else at.of_expert(part.expert)
    kept = part.weight.read(source, part.slice)
    weight = kept.mT if turned else kept
    bias = None if part.bias is None else part.bias.read(source, part.slice)
    change = factors(at, weight, bias, edit.row_normalization, edit.rank)
    edited, changed = apply_factors(weight, bias, change)
    part.weight.write(target, edited.mT if turned else edited, part.slice)
    if changed is not None and part.bias is not None:
        part.bias.write(target, changed, part.slice)
    return along(at, weight, change), changed if part.bias is None else None


def _copied(source: Path) -> list[str]:
    """Names of the files that make the merged model, weights last."""
    weights = weight_files(source)
    index = [] if weights == [SINGLE] else [INDEX]
    others = [
        file.name
        for file in sorted(source.iterdir())
        if file.is_file() and file.name != INDEX and any(fnmatch.fnmatch(file.name, one) for one in COPIED)
    ]
    return [*others, *index, *weights]


def _add_biases(folder: Path, plan: FileMerge, changed: Mapping[str, Tensor]) -> None:
    """A file of biases beside the others, an index that names it, and a configuration that asks for them."""
    from safetensors.torch import save_file

    dtype = plan.dtype
    zeros = {name: torch.zeros(shape, dtype=dtype) for name, shape in plan.zeros.items()}
    save_file({**zeros, **{name: bias.to(dtype) for name, bias in changed.items()}}, folder / BIASES, {"format": "pt"})
    index = folder / INDEX
    if not index.is_file():  # one file by itself would be taken for all there is
        shard = "model-00001-of-00001.safetensors"
        (folder / SINGLE).rename(folder / shard)
        write_json(index, {"metadata": {}, "weight_map": dict.fromkeys(_names(folder / shard), shard)})
    about = read_json(index)
    about["weight_map"] |= dict.fromkeys(plan.zeros, BIASES)
    write_json(index, about)
    write_json(folder / "config.json", {**read_json(folder / "config.json"), **dict.fromkeys(BIAS_FLAGS, True)})


def _names(file: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        return list(opened.keys())
