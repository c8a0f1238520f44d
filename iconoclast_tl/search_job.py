"""What a workspace asks of a search: its job, put together from settings, directions and activations."""

from __future__ import annotations

from iconoclast_tl.activations.store import Activations
from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.directions.estimate import estimate_directions
from iconoclast_tl.folding.merge import require_mergeable_bias
from iconoclast_tl.foundation.errors import UserError
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
        Source(_competing(workspace, directions, activations), settings.edit, activations.neutral_means),
        settings.search,
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
    if settings.search.method == "gradient" and settings.edit.row_normalization == "full":
        raise UserError(
            "restored row norms have no exact gradient",
            got="edit.row_normalization full with search.method gradient",
            mend="pass --search tpe, or --set edit.row_normalization=pre",
        )
    if settings.model.quantization != "none" and settings.edit.row_normalization != "none":
        raise UserError(
            "row normalisation needs weights that can be read, and these are quantised",
            got=f"edit.row_normalization {settings.edit.row_normalization}",
            mend="pass --set edit.row_normalization=none",
        )
    _ = workspace.sites  # an architecture whose writers cannot be reached is told here
    if settings.edit.affine and settings.fold.merge:
        require_mergeable_bias(workspace.model)


def _competing(workspace: Workspace, directions: Directions, activations: Activations) -> dict[str, Directions]:
    """The directions as set and, where they were filtered, the same without filters."""
    config = workspace.settings.directions
    if config.file is not None or not (config.orthogonalize or config.benign_rank):
        return {"as set": directions}
    plain = config.model_copy(update={"orthogonalize": False, "benign_rank": 0})
    vectors = estimate_directions(activations.target_train, activations.neutral_train, plain)
    return {"as set": directions, "unfiltered": Directions(vectors, directions.separation, directions.provenance)}


def _affine_can_be_kept(workspace: Workspace) -> bool:
    """Whether an affine edit can become all that was asked for: merged weights need biases."""
    if not workspace.settings.fold.merge:
        return True
    try:
        require_mergeable_bias(workspace.model)
    except UserError:
        return False
    return True
