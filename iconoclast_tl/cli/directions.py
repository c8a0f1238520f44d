"""`iconoclast-tl directions`: estimate one direction per residual point."""

from __future__ import annotations

from typing import Annotated

import typer

from iconoclast_tl.cli.options import Common, with_common

NAME = "directions"


@with_common
def command(
    common: Common,
    estimator: Annotated[str | None, typer.Option(help="mean, median, geometric-median, variance or hybrid.")] = None,
    orthogonalize: Annotated[
        bool | None, typer.Option("--orthogonalize/--no-orthogonalize", help="Project out the neutral mean.")
    ] = None,
    benign_rank: Annotated[
        int | None, typer.Option(help="Project out this many principal directions of neutral residuals.")
    ] = None,
    show_positions: Annotated[
        bool, typer.Option("--show-positions", help="Show the template's tokens after the instruction, and stop.")
    ] = False,
) -> None:
    """Estimate behaviour directions and show how well each separates the val prompts.

    Examples:

    `iconoclast-tl directions --out runs/first`

    `iconoclast-tl directions --estimator geometric-median --benign-rank 4 --out runs/robust`
    """
    from iconoclast_tl.cli.console import show, workspace_of

    options = {
        "directions__estimator": estimator,
        "directions__orthogonalize": orthogonalize,
        "directions__benign_rank": benign_rank,
    }
    with workspace_of(common, **options) as workspace:
        from iconoclast_tl import prepare
        from iconoclast_tl.activations.positions import described
        from iconoclast_tl.directions.separation import describe
        from iconoclast_tl.report.tables import directions_table, positions_table

        if show_positions:
            positions = described(workspace.chat)
            show(common, positions, positions_table(positions))
            return
        activations = prepare.collect(workspace)
        directions = prepare.estimate(workspace, activations)
        rows = describe(directions, activations.target_train, activations.neutral_train)
        show(common, rows, directions_table(rows), f"→ {workspace.folder.directions}")
