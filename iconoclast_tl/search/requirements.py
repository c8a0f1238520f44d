"""What a search needs of its settings and its model, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping

from iconoclast_tl.architecture.parts import every_head
from iconoclast_tl.architecture.sites import Site
from iconoclast_tl.architecture.writers import Writer, require_writers
from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.edits.ablation import require_width
from iconoclast_tl.edits.completeness import require_complete
from iconoclast_tl.edits.config import EditConfig
from iconoclast_tl.folding.fold import kept_norms_cannot_be_folded, require_carried
from iconoclast_tl.folding.merge import require_mergeable_bias
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.progress import Say
from iconoclast_tl.models.model import Model
from iconoclast_tl.search.config import SearchConfig


def require_searchable(model: Model, edit: EditConfig, search: SearchConfig) -> None:
    """Raise `UserError` where the settings ask for edits that could not be folded, or that this model cannot take."""
    if edit.scope == "stream":
        raise UserError(
            "the search is over edits that can be folded", got="edit.scope stream", want="edit.scope writers"
        )
    if edit.keep_norm:
        raise kept_norms_cannot_be_folded()
    if search.method != "tpe" and edit.row_normalization == "full":
        raise UserError(
            "restored row norms have no exact gradient",
            got=f"edit.row_normalization full with search.method {search.method}",
            mend="pass --search tpe, or --set edit.row_normalization=pre",
        )
    if model.quantization != "none" and edit.row_normalization != "none":
        raise UserError(
            "row normalisation needs weights that can be read, and these are quantised",
            got=f"edit.row_normalization {edit.row_normalization}",
            mend="pass --set edit.row_normalization=none",
        )
    require_complete(model)
    require_carried(edited_writers(model), bool(edit.affine), edit.row_normalization)
    _require_parts(model, edit, search)


def _require_parts(model: Model, edit: EditConfig, search: SearchConfig) -> None:
    named = edit.heads is not None or edit.neurons is not None
    profile = search.gradient.profile
    if profile == "head" and edit.heads is None and search.top_k is None:
        _ = every_head(model.hf)
    if search.top_k is not None and named:
        raise UserError(
            "heads are chosen twice, by name and by number",
            got=f"search.top_k {search.top_k} and edit.heads or edit.neurons",
            mend="leave one of them out",
        )
    if (named or search.top_k or profile in ("head", "neuron")) and edit.row_normalization != "none":
        raise UserError(
            "single heads and neurons take edits without row normalisation",
            got=f"edit.row_normalization {edit.row_normalization}",
            mend="pass --set edit.row_normalization=none",
        )


def require_own_directions(directions: Directions, model: Model, say: Say) -> None:
    """Raise `UserError` for directions of a model of another shape; those of other weights get a warning."""
    if not isinstance(directions, Directions):
        raise UserError(
            "a search goes over Directions", got=type(directions).__name__, want="what itl.estimate returns"
        )
    require_width(directions.vectors, model)
    if directions.n_layers != model.n_layers:
        raise UserError(
            "the directions are of another model", got=f"{directions.n_layers} layers", want=f"{model.n_layers} layers"
        )
    if directions.provenance.get("fingerprint") not in (None, model.fingerprint):
        say("warning: the directions were estimated on other weights")


def edited_writers(model: Model) -> Mapping[Site, Writer]:
    """The writers that an edit may change."""
    return require_writers(model.hf, set(model.components))


def affine_can_be_kept(model: Model, merge: bool) -> bool:
    """Whether an affine edit can become what is wanted: experts cannot carry it, and merged weights need biases."""
    writers = edited_writers(model)
    try:
        require_carried(writers, affine=True, row_normalization="none")
        if merge:
            require_mergeable_bias(model.hf, writers.values())
    except UserError:
        return False
    return True
