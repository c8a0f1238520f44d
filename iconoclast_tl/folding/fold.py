"""What a fold consists of: the factors of every edited matrix, and how much of the direction each one keeps.

made = fold(edit, model)
adapter = made.save("adapter/")      # for PEFT
weights = made.merge("merged/")      # for transformers alone
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Annotated, Any

from torch import Tensor

from iconoclast_tl.architecture.offloading import is_offloaded
from iconoclast_tl.architecture.sites import WRITERS, Component, Site
from iconoclast_tl.architecture.writers import Matrix, Writer, known_writers, require_writers
from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.edits.factors import Along, Factors, along, factors
from iconoclast_tl.edits.hooks import sites_of
from iconoclast_tl.folding.additions import as_writes
from iconoclast_tl.folding.saved import MergedWeights, SavedAdapter
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.stage_config import Changeable, StageConfig
from iconoclast_tl.models.model import Model


class FoldConfig(StageConfig):
    """What a fold writes."""

    merge: Annotated[bool, Changeable] = False
    """Save plain weights in merged/ besides the adapter."""


@dataclass(frozen=True)
class ParameterChange:
    """What a fold does to one parameter: to one matrix, or to every expert's that are fused in it."""

    matrix: Matrix
    factors: tuple[Factors, ...]
    """Of every expert; one where they are not fused."""
    residual_fraction: float
    """‖VW'‖/‖VW‖, over all experts together that are edited."""

    @property
    def has_bias(self) -> bool:
        """Whether a bias changes."""
        return any(one.bias is not None for one in self.factors)

    @property
    def is_projection(self) -> bool:
        """Whether weights change: an addition alone changes a bias only."""
        return any(bool(one.b.any()) for one in self.factors)

    @property
    def rank(self) -> int:
        """Rank of the LoRA pair of each expert."""
        return max(one.rank for one in self.factors)


@dataclass(frozen=True, eq=False)
class Fold:
    """An edit as changes of weights: of exactly the edited parameters of one model, which stays as it is."""

    edit: Edit
    model: Model = field(repr=False)
    changes: tuple[ParameterChange, ...] = field(repr=False)

    def __repr__(self) -> str:
        """Such as `Fold(11 matrices of organism, at most 3.1e-08 of the direction left)`."""
        left = max(self.residual_fraction.values(), default=None)
        kept = "no weight changed, biases alone" if left is None else f"at most {left:.2g} of the direction left"
        return f"Fold({self.n_matrices} matrices of {self.model.name}, {kept})"

    @property
    def n_matrices(self) -> int:
        """Edited matrices, every expert counted that is not left alone."""
        return sum(bool(one.b.any()) or one.bias is not None for change in self.changes for one in change.factors)

    @property
    def has_bias(self) -> bool:
        """Whether any matrix's bias changes (affine edits, additions, or a base bias along the direction)."""
        return any(change.has_bias for change in self.changes)

    @property
    def residual_fraction(self) -> dict[str, float]:
        """‖VW'‖/‖VW‖ by the path of the parameter, without `.weight`, where anything is projected out of it."""
        projected = [change for change in self.changes if change.is_projection]
        return {change.matrix.path.removesuffix(".weight"): change.residual_fraction for change in projected}

    def save(self, folder: str | PathLike[str]) -> SavedAdapter:
        """Write a PEFT LoRA adapter, readable by plain `peft`; one that `folder` holds already is replaced.

        Raises `UserError` where a layer would need a bias that PEFT cannot give it, and for a folder that cannot be
        written.
        """
        from iconoclast_tl.folding.adapter import save_adapter

        require_replaceable(Path(folder), "adapter_config.json")
        save_adapter(self, Path(folder))
        return SavedAdapter(Path(folder))

    def merge(self, folder: str | PathLike[str]) -> MergedWeights:
        """Write model and tokenizer with the edit in their weights; a model that `folder` holds already is replaced.

        The weights are those in memory, in the dtype in which the model was loaded. (The command `merge` edits a
        model's files instead, one matrix at a time, and keeps the dtype of the files.) Raises `UserError` where a bias
        changes that the architecture cannot have, and for a model that is offloaded.
        """
        from iconoclast_tl.folding.merge import save_merged

        require_replaceable(Path(folder), "config.json")
        save_merged(self, Path(folder))
        return MergedWeights(Path(folder))


def require_replaceable(folder: Path, mark: str) -> None:
    """Raise `UserError` for a folder that holds something else than what is written into its place."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / mark).is_file():
        raise UserError(
            f"{folder} holds something else",
            got=f"files, and no {mark}",
            want="a new or empty folder, or an earlier one of the same kind",
            mend="pass another folder",
        )


def fold(edit: Edit, model: Model) -> Fold:
    """Factors of `edit` for every matrix it touches; sites with strength 0 are left out.

    Raises `UserError` for an edit of another model (other layers, another width), for what cannot be folded
    (`require_foldable`, `require_experts_at_hand`, `as_writes`), for quantised weights, and for what experts cannot
    carry (`require_carried`).
    """
    require_foldable(edit)
    sites_of(model, edit)  # an edit of another model is refused here
    written = as_writes(edit, model.hf)
    require_experts_at_hand(model.hf, written.components)
    writers = require_writers(model.hf, written.components)
    changes = [change for site in written.sites for change in _site_changes(written, site, writers[site], model)]
    made = Fold(edit, model, tuple(changes))
    if not made.n_matrices:
        raise nothing_edited()
    return made


def require_foldable(edit: Edit) -> None:
    """Raise `UserError` for what o_proj and down_proj cannot do, whatever the model, and for an edit of nothing."""
    if edit.scope == "stream":
        raise UserError(
            "an edit of scope stream cannot be folded",
            got="strengths on resid_pre",
            want="scope writers: o_proj and down_proj can only change what they write",
        )
    if edit.keep_norm:
        raise kept_norms_cannot_be_folded()
    if not edit.sites:
        raise nothing_edited()


def kept_norms_cannot_be_folded() -> UserError:
    """What is said where norms are to be kept in weights."""
    return UserError(
        "an edit that keeps norms cannot be folded",
        got="edit.keep_norm",
        want="an edit that is linear in what is written: how much a token is scaled depends on the token",
        mend="leave --keep-norm out, or keep row norms of the weights by edit.row_normalization=full",
    )


def nothing_edited() -> UserError:
    """What is said of an edit that would leave every weight as it is."""
    return UserError("the edit has no strength other than zero", want="something to fold")


def require_experts_at_hand(hf: Any, components: Collection[Component] = WRITERS) -> None:
    """Raise `UserError` for edits of experts that are offloaded: PEFT cannot wrap experts that are not there."""
    writers = [writer for site, writer in known_writers(hf).items() if site.component in components]
    if is_offloaded(hf) and not all(writer.is_dense for writer in writers):
        raise UserError(
            f"experts of {type(hf).__name__} that are offloaded cannot be folded into an adapter",
            got="weights on the CPU or the disk that are fetched when they are needed",
            mend="raise model.max_memory, or run `search` and then `merge`, which needs no adapter",
        )


def require_carried(writers: Mapping[Site, Writer], affine: bool, row_normalization: str) -> None:
    """Raise `UserError` for kinds of edit that a mixture of experts cannot carry.

    A constant that is added to what a mixture writes is none that an expert could add: its weight in the sum differs
    from token to token. And what is projected out of a mixture's output is not what row norms of one expert would say.
    """
    if all(writer.is_dense for writer in writers.values()):
        return
    mixed = next(str(site) for site, writer in writers.items() if not writer.is_dense)
    if affine:
        raise UserError(
            "an affine edit cannot be folded into experts",
            got=f"a mixture of experts at {mixed}",
            mend="pass --set edit.affine=false, or --attention-only",
        )
    if row_normalization != "none":
        raise UserError(
            "experts cannot be edited with row normalisation",
            got=f"edit.row_normalization {row_normalization} and a mixture of experts at {mixed}",
            mend="pass --set edit.row_normalization=none, or --attention-only",
        )


def require_one_linear(edit: Edit, site: Site, writer: Writer) -> None:
    """Raise `UserError` for neurons of a mixture of experts: one number does not say of which."""
    if site.component in edit.parts and not writer.is_dense:
        raise UserError(
            f"single neurons cannot be edited at {site}",
            got="a mixture of experts",
            want="a dense MLP, or edit.experts",
        )


def _site_changes(edit: Edit, site: Site, writer: Writer, model: Model) -> list[ParameterChange]:
    at = edit.at(site)
    require_carried({site: writer}, bool(at.centres.any()), edit.row_normalization)
    require_one_linear(edit, site, writer)
    changes = []
    for matrix in writer.matrices:
        weights, biases = matrix.read(model.hf)
        found = [
            factors(
                at if matrix.n_experts is None else at.of_expert(expert),
                weight,
                _of(biases, expert),
                edit.row_normalization,
                edit.rank,
            )
            for expert, weight in enumerate(weights)
        ]
        measured = (along(at, w, one) for w, one in zip(weights, found, strict=True) if bool(one.b.any()))
        changes.append(ParameterChange(matrix, tuple(found), sum(measured, Along()).share_left))
    return changes


def _of(biases: Tensor | None, expert: int) -> Tensor | None:
    return None if biases is None else biases[expert]
