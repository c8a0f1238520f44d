"""What a workspace asks of a search: its job, put together from settings, directions and activations."""

from __future__ import annotations

from itertools import product

from iconoclast_tl.activations.store import Activations
from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.directions.estimate import DirectionConfig
from iconoclast_tl.directions.sets import UNFILTERED, DirectionSets, set_name
from iconoclast_tl.folding.fold import require_carried
from iconoclast_tl.folding.merge import require_mergeable_bias
from iconoclast_tl.folding.merge_files import stored_parts
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.sites import Site
from iconoclast_tl.models.stored import skeleton, stored_folder
from iconoclast_tl.models.writers import Writer, require_writers
from iconoclast_tl.search.config import SearchConfig
from iconoclast_tl.search.families import Source
from iconoclast_tl.search.search import Job
from iconoclast_tl.workspace import Workspace


def search_job(workspace: Workspace, directions: Directions, activations: Activations) -> Job:
    """The job of `search.find`."""
    settings = workspace.settings
    kinds = (True,) if settings.edit.affine else (False, True) if _affine_can_be_kept(workspace) else (False,)
    return Job(
        workspace.sites,
        workspace.asked("train", settings.search.gradient.prompts),
        workspace.val,
        Source(
            _direction_sets(workspace, directions, activations),
            settings.edit,
            workspace.ground(activations),
        ),
        _readable(workspace),
        settings.seed,
        workspace.folder.journal,
        workspace.folder.trace,
        kinds,
        workspace.track,
        workspace.say,
    )


def require_foldable(workspace: Workspace) -> None:
    """Raise `UserError`, before anything is computed, where the settings ask for edits that could not be folded."""
    settings = workspace.settings
    if settings.edit.scope == "stream":
        raise UserError(
            "the search is over edits that can be folded", got="edit.scope stream", want="edit.scope writers"
        )
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
    edit = workspace.settings.edit
    if workspace.parts and edit.row_normalization != "none":
        raise UserError(
            "single heads and neurons take edits without row normalisation",
            got=f"edit.row_normalization {edit.row_normalization}",
            mend="pass --set edit.row_normalization=none",
        )


def _readable(workspace: Workspace) -> SearchConfig:
    """The search's settings, without row normalisations that quantised weights, experts and single heads have not."""
    search = workspace.settings.search
    dense = all(writer.is_dense for writer in edited_writers(workspace).values())
    if dense and not workspace.parts and workspace.settings.model.quantization == "none":
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
    return DirectionSets(directions, activations, others)


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
