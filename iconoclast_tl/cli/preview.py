"""`iconoclast-tl preview`: what the model says with a direction ablated, no weight touched."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from iconoclast_tl.cli.options import Common, with_common

if TYPE_CHECKING:
    from iconoclast_tl.workspace import Workspace

NAME = "preview"


@with_common
def command(
    common: Common,
    point: Annotated[
        float | None,
        typer.Option(help="Residual point of the direction, 0…L, may be fractional; default: best d′."),
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="λ: 0 nothing, 1 projects out, negative amplifies; default: 1.")
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Layers to edit, e.g. 2-5 or 1,3,4; default: all.")] = None,
    scope: Annotated[
        Literal["writers", "stream"] | None, typer.Option(help="writers (foldable) or stream (also every resid_pre).")
    ] = None,
    affine: Annotated[bool | None, typer.Option("--affine", help="Ablate towards the neutral mean.")] = None,
    examples: Annotated[int, typer.Option(min=0, help="Prompts of each set to show side by side.")] = 3,
    chosen: Annotated[bool, typer.Option("--chosen", help="Preview the run's chosen edit instead.")] = False,
) -> None:
    """Show base and edited responses to the val prompts side by side, and their rates.

    Examples:

    `iconoclast-tl preview --strength 1 --out runs/first`

    `iconoclast-tl preview --point 4 --layers 2-5 --strength -0.5 --scope stream --out runs/first`
    """
    from iconoclast_tl.cli.console import show, workspace_of

    if chosen:
        _require_alone(point=point, strength=strength, layers=layers, scope=scope, affine=affine)
    with workspace_of(common) as opened:
        from iconoclast_tl import pipeline, prepare
        from iconoclast_tl.directions.separation import best_point
        from iconoclast_tl.evaluation.comparison import side_by_side
        from iconoclast_tl.report.tables import responses_table, results_table

        workspace = _with_edit(opened, scope=scope, affine=affine)
        which = parse_layers(layers, workspace.model.n_layers)
        weight = strength if strength is not None else 1.0
        _require_possible(point, weight, workspace.model.n_layers)
        if chosen:
            edit, title = prepare.chosen_edit(workspace), "the chosen edit"
        else:
            activations = prepare.collect(workspace)
            directions = prepare.estimate(workspace, activations)
            at = point if point is not None else float(best_point(directions))
            edit = prepare.uniform_edit(workspace, directions, activations, at, weight, which)
            title = f"point {at:g}, λ = {weight:g}, {edit.scope}, layers {layers or 'all'}"
        shown = pipeline.preview_edit(workspace, edit)
        result, rows = shown.to_json(), side_by_side(shown, examples)
        show(common, result, responses_table(rows), results_table(result, f"val split; {title}"))


def parse_layers(text: str | None, n_layers: int) -> list[int]:
    """`2-5`, `1,3,4` or both; all layers where nothing was given."""
    from iconoclast_tl.foundation.errors import UserError

    if text is None:
        return list(range(n_layers))
    layers: set[int] = set()
    for part in text.split(","):
        first, _, last = (piece.strip() for piece in part.partition("-"))
        if not first.isdecimal() or not (last or first).isdecimal() or int(last or first) < int(first):
            raise UserError("--layers does not parse", got=repr(text), want="for example 2-5 or 1,3,4")
        if int(last or first) >= n_layers:
            raise UserError(
                f"layer {last or first} is outside 0..{n_layers - 1}",
                got=f"a model with {n_layers} layers",
                mend=f"pass --layers 0-{n_layers - 1}",
            )
        layers |= set(range(int(first), int(last or first) + 1))
    return sorted(layers)


def _with_edit(workspace: Workspace, **changes: object) -> Workspace:
    """The workspace with other settings of the edit: a preview may try what the run folder's own edit is not."""
    given = {name: value for name, value in changes.items() if value is not None}
    edit = workspace.settings.edit.model_copy(update=given)
    return replace(workspace, settings=workspace.settings.model_copy(update={"edit": edit}))


def _require_alone(**options: object) -> None:
    """The run's chosen edit has its own strengths, layers and scope."""
    from iconoclast_tl.foundation.errors import UserError

    given = [f"--{name}" for name, value in options.items() if value is not None]
    if given:
        raise UserError("--chosen shows the chosen edit as it is", got=", ".join(given), mend="leave one or other out")


def _require_possible(point: float | None, strength: float, n_layers: int) -> None:
    """Say so before anything is collected."""
    from math import isfinite

    from iconoclast_tl.foundation.errors import UserError

    if not isfinite(strength):
        raise UserError("--strength is not a finite number", got=strength, want="for example 1 or -0.5")
    if point is not None and not 0 <= point <= n_layers:
        raise UserError(
            f"--point {point:g} is outside 0..{n_layers}",
            got=f"a model with {n_layers} layers",
            mend=f"pass a residual point from 1 to {n_layers}",
        )
