"""What a workspace asks of a search: its job, put together from settings, directions and activations."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from iconoclast_tl.activations.store import Activations
from iconoclast_tl.attribution_job import top_heads, top_neurons
from iconoclast_tl.direction_job import labels_for
from iconoclast_tl.directions.config import DirectionConfig
from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.directions.separation import best_point
from iconoclast_tl.directions.sets import UNFILTERED, DirectionSets, set_name
from iconoclast_tl.folding.fold import kept_norms_cannot_be_folded, require_carried
from iconoclast_tl.folding.merge import require_mergeable_bias
from iconoclast_tl.folding.merge_files import stored_parts
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.parts import every_head, head_factors, neuron_factors
from iconoclast_tl.models.sites import Component, Site
from iconoclast_tl.models.stored import skeleton, stored_folder
from iconoclast_tl.models.writers import Writer, require_writers
from iconoclast_tl.search.config import SearchConfig
from iconoclast_tl.search.families import Source
from iconoclast_tl.search.search import Job
from iconoclast_tl.search.warm_start import warm_start
from iconoclast_tl.workspace import Workspace

N_NEURONS = 256
"""Neurons of the profile `neuron`, where no number is given."""


def search_job(workspace: Workspace, directions: Directions, activations: Activations) -> Job:
    """The job of `search.find`."""
    settings = workspace.settings
    kinds = (True,) if settings.edit.affine else (False, True) if _affine_can_be_kept(workspace) else (False,)
    parts = searched_parts(workspace, directions, activations, affine=True in kinds)
    return Job(
        workspace.sites,
        workspace.asked("train", settings.search.gradient.prompts),
        workspace.val,
        Source(
            _direction_sets(workspace, directions, activations),
            settings.edit,
            replace(workspace.ground(activations, directions.position), parts=parts),
        ),
        _readable(workspace, bool(parts)),
        settings.seed,
        workspace.folder.journal,
        workspace.folder.trace,
        kinds,
        workspace.track,
        workspace.say,
        warm_start(workspace.model.hf.config) if settings.search.warm_start else None,
    )


def require_foldable(workspace: Workspace) -> None:
    """Raise `UserError`, before anything is computed, where the settings ask for edits that could not be folded."""
    settings = workspace.settings
    if settings.edit.scope == "stream":
        raise UserError(
            "the search is over edits that can be folded", got="edit.scope stream", want="edit.scope writers"
        )
    if settings.edit.keep_norm:
        raise kept_norms_cannot_be_folded()
    if settings.search.method != "tpe" and settings.edit.row_normalization == "full":
        raise UserError(
            "restored row norms have no exact gradient",
            got=f"edit.row_normalization full with search.method {settings.search.method}",
            mend="pass --search tpe, or --set edit.row_normalization=pre",
        )
    if settings.model.quantization != "none" and settings.edit.row_normalization != "none":
        raise UserError(
            "row normalisation needs weights that can be read, and these are quantised",
            got=f"edit.row_normalization {settings.edit.row_normalization}",
            mend="pass --set edit.row_normalization=none",
        )
    _ = workspace.sites  # an architecture whose writers cannot be reached is told here
    require_carried(edited_writers(workspace), settings.edit.affine, settings.edit.row_normalization)
    _require_parts_unnormalised(workspace)
    if settings.fold.merge:
        _require_mergeable(workspace)


def _require_mergeable(workspace: Workspace) -> None:
    settings, model = workspace.settings, workspace.model
    # Of quantised weights the shapes are not those of the files.
    hf = model.hf if model.quantization == "none" else skeleton(model.name, settings.model)
    stored_parts(edited_writers(workspace), hf, stored_folder(model.name, settings.model.revision))
    if settings.edit.affine:
        require_mergeable_bias(hf, edited_writers(workspace).values())


def _require_parts_unnormalised(workspace: Workspace) -> None:
    edit, search = workspace.settings.edit, workspace.settings.search
    if search.gradient.profile == "head" and edit.heads is None and search.top_k is None:
        _ = every_head(workspace.model.hf)
    if search.top_k is not None and (edit.heads is not None or edit.neurons is not None):
        raise UserError(
            "heads are named and counted",
            got=f"search.top_k {search.top_k} and edit.heads or edit.neurons",
            mend="leave one or other out",
        )
    if (
        workspace.parts or search.top_k or search.gradient.profile in ("head", "neuron")
    ) and edit.row_normalization != "none":
        raise UserError(
            "single heads and neurons take edits without row normalisation",
            got=f"edit.row_normalization {edit.row_normalization}",
            mend="pass --set edit.row_normalization=none",
        )


def searched_parts(
    workspace: Workspace, directions: Directions, activations: Activations, affine: bool
) -> dict[Component, Float[Tensor, "layer part"]]:
    """Factors of the strengths at heads and neurons: those that are named, the first by attribution, or all heads.

    The first by attribution are found once and kept in the manifest, so that a search that goes on has the same.
    """
    search, hf = workspace.settings.search, workspace.model.hf
    profile = search.gradient.profile
    if search.top_k is None and profile != "neuron":
        given = dict(workspace.parts)
        return {"attn_out": every_head(hf), **given} if profile == "head" else given
    kept = (workspace.folder.read_manifest() or {}).get("searched_parts")
    if kept is None:
        kept = _ranked(workspace, directions, activations, affine)
        workspace.remember(searched_parts=kept)
        shown = ", ".join(kept["names"][:12]) + (" …" if len(kept["names"]) > 12 else "")
        workspace.say(f"only these {kept['kind']}s are edited: {shown}")
    nothing = torch.zeros(workspace.model.n_layers, 1)
    if kept["kind"] == "neuron":
        return {"attn_out": nothing, "mlp_out": neuron_factors(kept["names"], hf)}
    return {"attn_out": head_factors(kept["names"], hf), "mlp_out": nothing}


def _ranked(workspace: Workspace, directions: Directions, activations: Activations, affine: bool) -> dict[str, Any]:
    search = workspace.settings.search
    if search.gradient.profile == "neuron":
        vector = directions.at(best_point(directions))
        return {"kind": "neuron", "names": top_neurons(workspace, activations, vector, search.top_k or N_NEURONS)}
    return {"kind": "head", "names": top_heads(workspace, directions, search.top_k or 1, search.by, affine)}


def _readable(workspace: Workspace, parts: bool) -> SearchConfig:
    """The search's settings, without row normalisations that quantised weights, experts and single heads have not."""
    search = workspace.settings.search
    dense = all(writer.is_dense for writer in edited_writers(workspace).values())
    if dense and not parts and workspace.settings.model.quantization == "none":
        return search
    return search.model_copy(update={"outer": search.outer.model_copy(update={"row_normalizations": ("none",)})})


def _direction_sets(workspace: Workspace, directions: Directions, activations: Activations) -> DirectionSets:
    """The directions as set and, unless they came from a file, what the method may choose beside them."""
    config, search = workspace.settings.directions, workspace.settings.search
    others: dict[str, DirectionConfig] = {}
    if config.file is None and search.method == "outer":
        for values in product(search.outer.estimators, (False, True), search.outer.benign_ranks):
            chosen = dict(zip(("estimator", "orthogonalize", "benign_rank"), values, strict=True))
            other = config.model_copy(update=chosen)
            others[set_name(other)] = other
    elif config.file is None and (config.orthogonalize or config.benign_rank):
        others[UNFILTERED] = config.model_copy(update={"orthogonalize": False, "benign_rank": 0})
    return DirectionSets(directions, activations, others, labels_for(workspace, *others.values()))


def edited_writers(workspace: Workspace) -> dict[Site, Writer]:
    """The writers that an edit of these settings may change."""
    return require_writers(workspace.model.hf, {site.component for site in workspace.sites} - {"resid_pre"})


def _affine_can_be_kept(workspace: Workspace) -> bool:
    """Whether an affine edit can become all that was asked for: experts cannot carry it, and merged weights need
    biases.
    """
    try:
        require_carried(edited_writers(workspace), affine=True, row_normalization="none")
        if workspace.settings.fold.merge:
            require_mergeable_bias(workspace.model.hf, edited_writers(workspace).values())
    except UserError:
        return False
    return True
