"""`iconoclast-tl run`: everything, in order."""

from __future__ import annotations

from typing import Annotated

import typer

from iconoclast_tl.cli.options import Common, GoalOption, MethodOption, TrialsOption, with_common

NAME = "run"


@with_common
def command(
    common: Common,
    method: MethodOption = None,
    goal: GoalOption = None,
    trials: TrialsOption = None,
    merge: Annotated[
        bool | None, typer.Option("--merge/--no-merge", help="Save plain weights besides the adapter.")
    ] = None,
) -> None:
    """Collect, estimate directions, preview, search, fold, verify and evaluate.

    Stopped at any moment, the same command continues. Examples:

    `iconoclast-tl run --out runs/first`

    `iconoclast-tl run --model owner/name --target harmful.txt --neutral harmless.txt --merge`

    `iconoclast-tl run --search tpe --trials 200 --out runs/classic`
    """
    from iconoclast_tl.cli.console import show, workspace_of

    options = {
        "search__method": method,
        "search__goal": goal,
        "search__n_trials": trials,
        "fold__merge": merge,
    }
    with workspace_of(common, **options) as workspace:
        from iconoclast_tl.report.tables.evaluation import main_tables
        from iconoclast_tl.report.tables.fidelity import fidelity_table
        from iconoclast_tl.report.tables.search import pareto_table
        from iconoclast_tl.stages.pipeline import run_all

        results = run_all(workspace)
        show(
            common,
            results,
            pareto_table(results["pareto"], results["chosen"], results["search"]),
            *main_tables(results, f"{results['behaviour']} of {results['model']}, test split"),
            fidelity_table(results["fidelity"]),
            f"written to {workspace.folder.path}",
        )
