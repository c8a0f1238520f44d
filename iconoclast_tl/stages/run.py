"""A run on disk: the stages of a run folder as methods. The command line goes through this class.

    run = Run("runs/mine", recipe="recipe.toml", settings={"search.n_trials": 60})
    run.all()                       # resumable: the same call continues where it was stopped
    run.results["edited"]["behaviour_rate"]

Every method loads the model and lets go of it. To load it once for several of them:

    with run.open():
        run.collect()
        run.search()
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.progress import Say, Track, silent, unheard
from iconoclast_tl.stages.run_folder import RunFolder
from iconoclast_tl.stages.settings import Nested, merge, nest

if TYPE_CHECKING:
    from iconoclast_tl.activations.store import Activations
    from iconoclast_tl.attribution.parts import Part
    from iconoclast_tl.directions.directions import Directions
    from iconoclast_tl.edits.edit import Edit
    from iconoclast_tl.evaluation.base_and_edited import BaseAndEdited
    from iconoclast_tl.report.pages.attribution import AttributionReport
    from iconoclast_tl.stages.workspace import Workspace


class Run:
    """A run folder with its settings: each method does what is missing, and reads what is there."""

    def __init__(
        self,
        folder: str | PathLike[str],
        *,
        recipe: str | PathLike[str] | None = None,
        settings: Mapping[str, Any] | None = None,
        track: Track = silent,
        say: Say = unheard,
    ) -> None:
        """A run in `folder`, which is made when the first stage begins.

        recipe: a TOML file. settings: by stage, dotted (`{"search.n_trials": 60}`) or nested; they go before the
        environment, the recipe, and what the folder was made with. track, say: take progress and notes.
        """
        self.folder = RunFolder(Path(folder))
        self.recipe = None if recipe is None else Path(recipe)
        self.settings: Nested = {}
        for key, value in (settings or {}).items():
            self.settings = merge(self.settings, nest(key, value))
        self.track, self.say = track, say
        self._open: Workspace | None = None

    def __repr__(self) -> str:
        """Such as `Run(runs/mine: searched, evaluated)`."""
        folder = self.folder
        there = {
            "collected": folder.activations,
            "searched": folder.journal if folder.journal.is_file() else folder.trace,
            "folded": folder.adapter,
            "evaluated": folder.results,
        }
        done = [name for name, place in there.items() if place.exists()]
        return f"Run({folder.path}: {', '.join(done) or 'nothing yet'})"

    @contextmanager
    def open(self) -> Iterator[Workspace]:
        """Load and check settings, prompts and model, and keep other processes out of the folder until the block ends.

        Methods that are called inside use the same model. Raises `UserError` for settings, prompts or a model that do
        not go together, or not with what the folder holds; nothing was written then.
        """
        if self._open is not None:
            yield self._open
            return
        from iconoclast_tl.stages.opening import open_workspace

        with open_workspace(self.settings, self.recipe, self.folder.path, self.track, self.say) as workspace:
            self._open = workspace
            try:
                yield workspace
            finally:
                self._open = None

    def all(self) -> dict[str, Any]:
        """Collect, estimate, preview, search, fold, verify and evaluate; returns the results."""
        from iconoclast_tl.stages.pipeline import run_all

        with self.open() as workspace:
            return run_all(workspace)

    def collect(self) -> Activations:
        """Residuals of the train and val prompts."""
        from iconoclast_tl.stages.collection import collected

        with self.open() as workspace:
            return collected(workspace)

    def directions(self) -> Directions:
        """Directions of every residual point, estimated on train, with their separation on val."""
        from iconoclast_tl.stages.directions import estimated

        with self.open() as workspace:
            return estimated(workspace, self.collect())

    def preview(
        self, point: float | None = None, strength: float = 1.0, layers: Collection[int] | None = None
    ) -> BaseAndEdited:
        """The val prompts without and with an ablation: λ = `strength` along the direction of a residual point.

        point: by default the one that separates best. layers: by default all.
        """
        from iconoclast_tl.stages.edits import uniform_edit
        from iconoclast_tl.stages.preview import previewed

        with self.open() as workspace:
            activations, directions = self.collect(), self.directions()
            at = float(directions.best) if point is None else point
            which = range(directions.n_layers) if layers is None else layers
            return previewed(workspace, uniform_edit(workspace, directions, activations, at, strength, which))

    def search(self) -> Edit:
        """The edit that the search chose, on val; it stays the run's."""
        from iconoclast_tl.stages.search import require_settings_foldable, searched

        with self.open() as workspace:
            require_settings_foldable(workspace)
            activations, directions = self.collect(), self.directions()
            return searched(workspace, directions, activations)

    def fold(self) -> dict[str, Any]:
        """Write the chosen edit as an adapter (and as merged weights, where `fold.merge` says so).

        Returns how far reloaded logits are from the preview's: `fidelity` of the results.
        """
        from iconoclast_tl.stages.edits import chosen_edit
        from iconoclast_tl.stages.fold import folded

        with self.open() as workspace:
            return folded(workspace, chosen_edit(workspace))

    def attribute(self, point: float | None = None, only: Collection[Part] | None = None) -> AttributionReport:
        """What embedding, heads and MLPs do for the behaviour; `stages.attribution.attributed`."""
        from iconoclast_tl.stages.attribution import attributed

        with self.open() as workspace:
            return attributed(workspace, point, only)

    def evaluate(self, adapter: str | PathLike[str] | None = None) -> dict[str, Any]:
        """Ask the test prompts without and with the run's chosen edit; returns the results.

        In a folder without an edit: of the model by itself, or without and with a PEFT adapter.
        """
        from iconoclast_tl.stages.edits import chosen_edit
        from iconoclast_tl.stages.evaluation import evaluated, evaluated_model

        with self.open() as workspace:
            if adapter is None and self.folder.edit.is_file():
                return evaluated(workspace, chosen_edit(workspace))
            return evaluated_model(workspace, None if adapter is None else Path(adapter))

    @property
    def results(self) -> dict[str, Any]:
        """The published results (`stages.results.Results`); `UserError` where nothing was evaluated yet."""
        from iconoclast_tl.stages.results import published

        self._require_run()
        return published(self.folder)

    @property
    def edit(self) -> Edit:
        """The chosen edit; `UserError` where there is none yet. The model is not loaded."""
        from iconoclast_tl.edits.store import load_edit

        model = self._require_run()["model"]
        if not self.folder.edit.is_file():
            raise UserError(f"the run {self.folder.path} has no edit yet", mend="call search(), or all()")
        return load_edit(self.folder.edit, model["n_layers"], model["d_model"])[0]

    def _require_run(self) -> dict[str, Any]:
        manifest = self.folder.read_manifest()
        if manifest is None:
            raise UserError(f"there is no run in {self.folder.path}", mend="call all(), or a stage, first")
        return manifest
