"""What `preview` is asked to try: an ablation, an addition, or both; checked, and made an edit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iconoclast_tl.directions.directions import Directions
    from iconoclast_tl.edits.edit import Edit
    from iconoclast_tl.stages.workspace import Workspace


@dataclass(frozen=True)
class Made:
    """An edit, and what to say of it."""

    edit: Edit
    title: str
    about: dict[str, Any]
    """For programs, and for whoever keeps the edit."""


@dataclass(frozen=True, kw_only=True)
class InterventionOptions:
    """The options of an intervention as they were given; None where one was not."""

    point: float | None = None
    strength: float | None = None
    layers: str | None = None
    scope: str | None = None
    affine: bool | None = None
    keep_norm: bool | None = None
    calibrate: float | None = None
    add_point: int | None = None
    add_from: Path | None = None
    coefficient: float | None = None

    @property
    def adds(self) -> bool:
        """Whether a direction is to be added."""
        return not (self.add_point is None and self.add_from is None and self.coefficient is None)

    @property
    def weight(self) -> float:
        """λ: as given; else 1, and 0 where the run's own direction is added."""
        if self.strength is not None:
            return self.strength
        return 0.0 if self.adds and self.add_from is None else 1.0

    def given(self, *names: str) -> list[str]:
        """Those of these options (of all where none is named) that were given, as one types them."""
        found = names or tuple(vars(self))
        return [f"--{name.replace('_', '-')}" for name in found if getattr(self, name) is not None]

    def require_possible(self, n_layers: int) -> None:
        """Raise `UserError` for what no model of so many layers can do, before anything is collected."""
        from math import isfinite

        from iconoclast_tl.foundation.errors import UserError

        numbers = {"--strength": self.strength, "--coefficient": self.coefficient}
        for name, value in numbers.items():
            if value is not None and not isfinite(value):
                raise UserError(f"{name} is not a finite number", got=value, want="for example 1 or -0.5")
        if self.point is not None and not 0 <= self.point <= n_layers:
            raise UserError(
                f"--point {self.point:g} is outside 0..{n_layers}",
                got=f"a model with {n_layers} layers",
                mend=f"pass a residual point from 1 to {n_layers}",
            )
        if self.add_point is not None and not 0 <= self.add_point < n_layers:
            raise UserError(
                f"--add-point {self.add_point} is outside 0..{n_layers - 1}",
                got=f"a model with {n_layers} layers, which read points 0 to {n_layers - 1}",
                mend=f"pass a residual point from 1 to {n_layers - 1}",
            )
        if self.calibrate is not None and not 0 < self.calibrate < 1:
            raise UserError("--calibrate is no quantile", got=self.calibrate, want="between 0 and 1, such as 0.9")
        idle = self.given("point", "layers", "scope", "affine", "keep_norm", "calibrate")
        if self.adds and not self.weight and idle:
            raise UserError(
                "an addition alone ablates nothing",
                got=", ".join(idle),
                mend="say where to add by --add-point, or what else to add by --add-from",
            )

    def settings(self, workspace: Workspace) -> Workspace:
        """The workspace with other settings of the edit: a preview may try what the run folder's own edit is not."""
        names = ("scope", "affine", "keep_norm", "calibrate")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        edit = workspace.settings.edit.model_copy(update=given)
        return replace(workspace, settings=workspace.settings.model_copy(update={"edit": edit}))

    def make(self, workspace: Workspace, which: list[int]) -> Made:
        """The edit on this workspace, in which `settings` are; `which` layers are ablated."""
        from iconoclast_tl.edits.addition import make_addition, overlap, require_apart, with_addition
        from iconoclast_tl.stages.collection import collected
        from iconoclast_tl.stages.directions import estimated
        from iconoclast_tl.stages.edits import addition, uniform_edit

        activations = collected(workspace)
        directions = estimated(workspace, activations)
        at = self.point if self.point is not None else float(directions.best)
        ablation, titles, about = None, list[str](), dict[str, Any]()
        if self.weight or not self.adds:
            ablation = uniform_edit(workspace, directions, activations, at, self.weight, which)
            titles.append(self._title(ablation, at))
        if ablation is not None and not self.adds:
            return Made(ablation, titles[0], about)
        where = self._add_point(directions, at)
        added = addition(workspace, directions, activations, where, self.coefficient, self.add_from)
        found = 0.0 if ablation is None else overlap(ablation, added.vector)
        require_apart(found, workspace.settings.edit.max_overlap)
        source = "the run's own" if self.add_from is None else str(self.add_from)
        about = {"point": where, "coefficient": added.coefficient, "direction": source}
        said = f"{added.coefficient:+.3g} v added at point {where}"
        if ablation is None:
            return Made(make_addition(added, directions.n_layers), said, {"added": about})
        titles.append(f"{said}, overlap {found:.2f}")
        return Made(with_addition(ablation, added), "; ".join(titles), {"added": {**about, "overlap": found}})

    def _add_point(self, directions: Directions, ablated: float) -> int:
        """As given; else the ablated direction's, rounded, or the last that a layer reads."""
        return self.add_point if self.add_point is not None else min(round(ablated), directions.n_layers - 1)

    def _title(self, edit: Edit, point: float) -> str:
        norms = ", norms kept" if edit.keep_norm else ""
        shares = "" if self.calibrate is None else f", calibrated at {self.calibrate:g}"
        return f"point {point:g}, λ = {self.weight:g}{shares}, {edit.scope}{norms}, layers {self.layers or 'all'}"
