"""`iconoclast-tl directions`: estimate directions, choose among them, and show their diagnostics."""

from __future__ import annotations

from typing import Annotated

import typer

from iconoclast_tl.cli.options import Common, with_common

NAME = "directions"


@with_common
def command(
    common: Common,
    estimator: Annotated[
        str | None,
        typer.Option(
            help="mean, median, geometric-median, variance, hybrid, pca, pca-centred, contrastive-pca, lda, probe, "
            "probe+pca, leace, cones, som, or one of a --plugin; default: mean."
        ),
    ] = None,
    components: Annotated[
        int | None, typer.Option(help="Most directions a point, of contrastive-pca, cones and som; default: 4.")
    ] = None,
    orthogonalize: Annotated[
        bool | None, typer.Option("--orthogonalize/--no-orthogonalize", help="Project out the neutral mean.")
    ] = None,
    benign_rank: Annotated[
        int | None, typer.Option(help="Project out this many principal directions of neutral residuals.")
    ] = None,
    winsorize: Annotated[
        float | None, typer.Option(help="Cut every residual's coordinates at this quantile of their sizes, e.g. 0.995.")
    ] = None,
    positions: Annotated[
        str | None, typer.Option(help="Collect the last N positions, or `template`: all after the instruction.")
    ] = None,
    select: Annotated[
        str | None, typer.Option(help="separation (default), arditi or cosmic: among positions × residual points.")
    ] = None,
    refine: Annotated[
        int | None, typer.Option(help="Rounds of further directions, estimated on the edited model; default: 0.")
    ] = None,
    compare: Annotated[
        str | None, typer.Option(help="Estimators to compare with, with commas; `none` for none.")
    ] = None,
    resamples: Annotated[
        int | None, typer.Option(help="Bootstrap resamples for the stability; 0 for none; default: 10.")
    ] = None,
    show_positions: Annotated[
        bool, typer.Option("--show-positions", help="Show the template's tokens after the instruction, and stop.")
    ] = False,
) -> None:
    """Estimate behaviour directions, choose among them on val, and write their diagnostics to directions.html.

    More by `--set directions.…` (contrast, fallback, min_cluster, som_grid, position, selection.max_kl and others): see
    `iconoclast-tl config show`.

    Examples:

    `iconoclast-tl directions --out runs/first`

    `iconoclast-tl directions --estimator cones --components 5 --out runs/cones`

    `iconoclast-tl directions --show-positions`

    `iconoclast-tl directions --positions template --select arditi --out runs/arditi`
    """
    from iconoclast_tl.cli.console import show, workspace_of

    named = None if compare is None else [name.strip() for name in compare.split(",") if name.strip() != "none"]
    options = {
        "directions__estimator": estimator,
        "directions__components": components,
        "directions__orthogonalize": orthogonalize,
        "directions__benign_rank": benign_rank,
        "directions__winsorize": winsorize,
        "activations__positions": positions,
        "directions__selection__rule": select,
        "directions__refine": refine,
        "directions__compare": named,
        "directions__resamples": resamples,
    }
    with workspace_of(common, **options) as workspace:
        from iconoclast_tl.activations.positions import described
        from iconoclast_tl.report.tables.directions import agreement_table, candidates_table, directions_table
        from iconoclast_tl.report.tables.prompts import positions_table
        from iconoclast_tl.stages.collection import collected
        from iconoclast_tl.stages.directions import diagnosed, estimated

        if show_positions:
            tail = described(workspace.model.chat)
            show(common, tail, positions_table(tail))
            return
        activations = collected(workspace)
        directions = estimated(workspace, activations)
        report = diagnosed(workspace, activations, directions)
        tables = [directions_table(report.diagnostics), agreement_table(report.diagnostics)]
        if report.selection is not None and select_by_scores(report.selection.rule, len(activations.positions)):
            tables.append(candidates_table(report.selection))
        show(common, report.to_json(), *tables, f"→ {workspace.folder.directions}, {workspace.folder.directions_page}")


def select_by_scores(rule: str, n_positions: int) -> bool:
    """Whether there is more to see of a selection than the separation of every point."""
    return rule != "separation" or n_positions > 1
