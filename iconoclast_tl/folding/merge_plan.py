"""Which way a fold becomes plain weights: in a copy of the model's files, or in memory where those are no safetensors.

Of a GGUF file the merged model is a normal folder all the same: dequantised weights in the dtype in which they were
loaded, with configuration, tokenizer and chat template.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from iconoclast_tl.architecture.offloading import is_offloaded
from iconoclast_tl.architecture.writers import Writer
from iconoclast_tl.folding.fold import Fold
from iconoclast_tl.folding.merge import offloaded, require_mergeable_bias, save_merged
from iconoclast_tl.folding.merge_files import FileMerge, merge_files, plan_merge
from iconoclast_tl.foundation.progress import Track, silent
from iconoclast_tl.models.source import is_gguf
from iconoclast_tl.models.stored import stored_folder


@dataclass(frozen=True)
class MemoryMerge:
    """A fold that is to be saved from memory, found to be possible before anything is written."""

    made: Fold

    @property
    def dtype(self) -> torch.dtype:
        """In which the matrices are going to be stored."""
        dtype: torch.dtype = self.made.model.hf.dtype
        return dtype

    def write(self, folder: Path, track: Track = silent) -> None:
        """Write the merged model into `folder`, atomically."""
        for _ in track([folder], "merge", 1):
            save_merged(self.made, folder)


@dataclass(frozen=True)
class StoredMerge:
    """A fold that is to be merged file by file."""

    plan: FileMerge

    @property
    def dtype(self) -> torch.dtype:
        """The narrowest in which an edited matrix is stored."""
        return self.plan.dtype

    def write(self, folder: Path, track: Track = silent) -> None:
        """Write the merged model into `folder`, atomically."""
        merge_files(self.plan, folder, track)


def planned_merge(made: Fold, revision: str | None = None) -> MemoryMerge | StoredMerge:
    """How `made` will become plain weights.

    Raises `UserError` where it cannot: for what `plan_merge` refuses, for a bias that the architecture cannot have, and
    for a GGUF file of which not all is in memory.
    """
    model = made.model
    if not is_gguf(model.name):
        return StoredMerge(plan_merge(made.edit, model.hf, stored_folder(model.name, revision)))
    if is_offloaded(model.hf):
        raise offloaded(model)
    lacking = [one for one in made.changes if one.has_bias and one.matrix.bias is None]
    if lacking:
        require_mergeable_bias(model.hf, [Writer(one.matrix.module, (one.matrix,)) for one in lacking])
    return MemoryMerge(made)
