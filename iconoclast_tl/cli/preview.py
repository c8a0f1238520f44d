"""`iconoclast-tl preview`: what the model says with a direction ablated or added, no weight touched."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from iconoclast_tl.cli.options import Common, with_common

if TYPE_CHECKING:
    from iconoclast_tl.cli.intervention import Made
    from iconoclast_tl.stages.workspace import Workspace

NAME = "preview"


@with_common
def command(
    common: Common,
    point: Annotated[
        float | None,
        typer.Option(help="Residual point of the ablated direction, 0…L, may be fractional; default: best d′."),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            help="λ: 0 nothing, 1 projects out, negative amplifies; default: 1 (0 where only --add-point or "
            "--coefficient is given)."
        ),
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Layers to edit, e.g. 2-5 or 1,3,4; default: all.")] = None,
    scope: Annotated[
        Literal["writers", "stream"] | None, typer.Option(help="writers (foldable) or stream (also every resid_pre).")
    ] = None,
    affine: Annotated[bool | None, typer.Option("--affine", help="Ablate towards the neutral mean.")] = None,
    keep_norm: Annotated[
        bool | None, typer.Option("--keep-norm", help="Bring what is left back to its length (cannot be folded).")
    ] = None,
    calibrate: Annotated[
        float | None, typer.Option(help="Scale λ by this quantile of the target prompts' projections, e.g. 0.9.")
    ] = None,
    add_point: Annotated[
        int | None, typer.Option(help="Add a direction to what enters this layer; default: --point, rounded.")
    ] = None,
    add_from: Annotated[
        Path | None, typer.Option(help="Add this run's direction: a directions.safetensors; default: the run's own.")
    ] = None,
    coefficient: Annotated[
        float | None,
        typer.Option(help="How much of it, in unit vectors, negative subtracts; default: the gap between the sides."),
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="Prompts of each set to show side by side.")] = 3,
    chosen: Annotated[bool, typer.Option("--chosen", help="Preview the run's chosen edit instead.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Make it the run's chosen edit: for fold, merge, evaluate.")] = (
        False
    ),
) -> None:
    """Show base and edited responses to the val prompts side by side, and their rates.

    Examples:

    `iconoclast-tl preview --strength 1 --out runs/first`

    `iconoclast-tl preview --point 4 --layers 2-5 --strength -0.5 --scope stream --out runs/first` (amplifies)

    `iconoclast-tl preview --add-point 4 --coefficient -3 --keep --out runs/steered` (subtracts, ablates nothing)

    `iconoclast-tl preview --add-from runs/complied/directions.safetensors --coefficient 2 --out runs/first` (adds one
    direction and ablates the run's own)
    """
    from iconoclast_tl.cli.console import show, workspace_of
    from iconoclast_tl.cli.intervention import InterventionOptions

    asked = InterventionOptions(
        point=point, strength=strength, layers=layers, scope=scope, affine=affine, keep_norm=keep_norm,
        calibrate=calibrate, add_point=add_point, add_from=add_from, coefficient=coefficient,
    )  # fmt: skip
    if chosen:
        _require_alone([*asked.given(), *(["--keep"] if keep else [])])
    with workspace_of(common) as opened:
        from iconoclast_tl.evaluation.base_and_edited import side_by_side
        from iconoclast_tl.report.tables.evaluation import results_table
        from iconoclast_tl.report.tables.prompts import responses_table
        from iconoclast_tl.stages.preview import previewed

        workspace = asked.settings(opened)
        which = parse_layers(layers, workspace.model.n_layers)
        asked.require_possible(workspace.model.n_layers)
        made = _chosen(workspace) if chosen else asked.make(workspace, which)
        if keep:
            _keep(workspace, made)
        shown = previewed(workspace, made.edit)
        result, rows = {**shown.to_json(), **made.about}, side_by_side(shown, examples)
        show(common, result, responses_table(rows), results_table(result, f"val split; {made.title}"))


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


def _chosen(workspace: Workspace) -> Made:
    from iconoclast_tl.cli.intervention import Made
    from iconoclast_tl.stages.edits import chosen_edit

    return Made(chosen_edit(workspace), "the chosen edit", {})


def _keep(workspace: Workspace, made: Made) -> None:
    """Keep the edit, and say at once where it cannot be folded: it may be evaluated all the same."""
    from iconoclast_tl.cli.console import note
    from iconoclast_tl.folding.additions import as_writes
    from iconoclast_tl.folding.fold import require_foldable
    from iconoclast_tl.foundation.errors import UserError
    from iconoclast_tl.stages.edits import keep_edit

    keep_edit(workspace, made.edit, {"previewed": made.title, **made.about})
    try:
        require_foldable(made.edit)
        as_writes(made.edit, workspace.model.hf)
    except UserError as error:
        note(f"kept for `evaluate` and `preview --chosen`; {error}")
    else:
        note(f"kept: iconoclast-tl fold --out {workspace.folder.path}")


def _require_alone(given: list[str]) -> None:
    """The run's chosen edit has its own strengths, layers and scope."""
    from iconoclast_tl.foundation.errors import UserError

    if given:
        raise UserError("--chosen shows the chosen edit as it is", got=", ".join(given), mend="leave one or other out")
