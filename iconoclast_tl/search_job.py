"""What a workspace asks of a search: its job, put together from settings, directions and activations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product

from iconoclast_tl.activations.store import Activations
from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.directions.estimate import DirectionConfig, estimate_directions
from iconoclast_tl.folding.merge import require_mergeable_bias
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.search.config import SearchConfig
from iconoclast_tl.search.families import AS_SET, UNFILTERED, Source, set_name
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
        Source(_direction_sets(workspace, directions, activations), settings.edit, activations.neutral_means),
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
    if settings.edit.affine and settings.fold.merge:
        require_mergeable_bias(workspace.model)


def _readable(workspace: Workspace) -> SearchConfig:
    """The search's settings, without row normalisations that quantised weights have not."""
    search = workspace.settings.search
    if workspace.settings.model.quantization == "none":
        return search
    return search.model_copy(update={"outer": search.outer.model_copy(update={"row_normalizations": ("none",)})})


class DirectionSets(Mapping[str, Directions]):
    """Directions by name, each set estimated when it is first asked for."""

    def __init__(self, as_set: Directions, activations: Activations, others: Mapping[str, DirectionConfig]) -> None:
        self._known, self._activations, self._others = {AS_SET: as_set}, activations, others

    def __getitem__(self, name: str) -> Directions:
        """Raises KeyError for a name that there is not."""
        if name not in self._known:
            target, neutral = self._activations.target_train, self._activations.neutral_train
            as_set = self._known[AS_SET]
            vectors = estimate_directions(target, neutral, self._others[name])
            self._known[name] = Directions(vectors, as_set.separation, as_set.provenance)
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        """`as set` first."""
        return iter((AS_SET, *self._others))

    def __len__(self) -> int:
        """How many sets there are."""
        return 1 + len(self._others)


def _direction_sets(workspace: Workspace, directions: Directions, activations: Activations) -> DirectionSets:
    """The directions as set and, unless they came from a file, what the method may choose beside them."""
    config, search = workspace.settings.directions, workspace.settings.search
    others: dict[str, DirectionConfig] = {}
    if config.file is None and search.method == "outer":
        chosen = product(search.outer.estimators, (False, True), search.outer.benign_ranks)
        for values in chosen:
            parts = dict(zip(("estimator", "orthogonalize", "benign_rank"), values, strict=True))
            others[set_name(parts)] = config.model_copy(update=parts)
    elif config.file is None and (config.orthogonalize or config.benign_rank):
        others[UNFILTERED] = config.model_copy(update={"orthogonalize": False, "benign_rank": 0})
    return DirectionSets(directions, activations, others)


def _affine_can_be_kept(workspace: Workspace) -> bool:
    """Whether an affine edit can become all that was asked for: merged weights need biases."""
    if not workspace.settings.fold.merge:
        return True
    try:
        require_mergeable_bias(workspace.model)
    except UserError:
        return False
    return True
