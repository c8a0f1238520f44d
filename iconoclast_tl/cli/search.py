"""`iconoclast-tl search`: strengths by gradient or by Optuna, through the hooks."""

from __future__ import annotations

from typing import Annotated

import typer

from iconoclast_tl.cli.options import Common, GoalOption, MethodOption, TrialsOption, with_common

NAME = "search"


@with_common
def command(
    common: Common,
    method: MethodOption = None,
    goal: GoalOption = None,
    profile: Annotated[str | None, typer.Option(help="Of a gradient: free (default), kernel, head or neuron.")] = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", help="Edit the first k heads only, by --by (or neurons: --profile neuron).")
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="The method of `attribute` that ranks heads; default: integrated.")
    ] = None,
    allow_negative: Annotated[
        bool | None, typer.Option("--allow-negative", help="Let a gradient change the sign of strengths.")
    ] = None,
    trials: TrialsOption = None,
    warm_start: Annotated[
        bool | None,
        typer.Option("--warm-start/--no-warm-start", help="Of tpe: begin with a profile of the model's family."),
    ] = None,
    preset: Annotated[str | None, typer.Option(help="iconoclast or heretic.")] = None,
    choose: Annotated[str | None, typer.Option(help="interval (default), lexicographic, knee or least-kl.")] = None,
    take: Annotated[int | None, typer.Option(help="Take this trial or point, in place of the rule's.")] = None,
    max_rate: Annotated[float | None, typer.Option(help="Largest behaviour rate for least-kl.")] = None,
) -> None:
    """Search the strengths of an edit on the val split and keep the chosen one; stop and continue at any moment.

    Examples:

    `iconoclast-tl search --out runs/first`

    `iconoclast-tl search --goal strengthen --profile kernel --out runs/stronger`

    `iconoclast-tl search --profile head --top-k 5 --by integrated --out runs/heads`

    `iconoclast-tl search --search tpe --trials 200 --out runs/classic`

    `iconoclast-tl search --choose least-kl --max-rate 0.05 --out runs/first`
    """
    from iconoclast_tl.cli.console import show, workspace_of

    options = {
        "search__method": method,
        "search__goal": goal,
        "search__gradient__profile": profile,
        "search__gradient__allow_negative": allow_negative,
        "search__top_k": top_k,
        "search__by": by,
        "search__n_trials": trials,
        "search__warm_start": warm_start,
        "search__preset": preset,
        "search__choose": choose,
        "search__take": take,
        "search__max_rate": max_rate,
    }
    with workspace_of(common, **options) as workspace:
        from iconoclast_tl.report.tables.search import pareto_table
        from iconoclast_tl.stages.collection import collected
        from iconoclast_tl.stages.directions import estimated
        from iconoclast_tl.stages.search import require_settings_foldable, searched

        require_settings_foldable(workspace)
        activations = collected(workspace)
        directions = estimated(workspace, activations)
        searched(workspace, directions, activations)
        state = workspace.folder.read_state()
        shown = {name: state[name] for name in ("pareto", "chosen", "search")}
        show(common, shown, pareto_table(**shown), f"→ {workspace.folder.edit}")
