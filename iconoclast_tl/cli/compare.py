"""`iconoclast-tl compare`: runs against runs, over seeds and models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAME = "compare"


def command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of evaluated runs.")],
    against: Annotated[
        list[Path] | None,
        typer.Option(
            help="A run of the reference; the others are then compared with these. Repeatable.", metavar="RUN"
        ),
    ] = None,
    alpha: Annotated[
        float, typer.Option(help="Largest p, corrected for several comparisons, that is accepted.")
    ] = 0.05,
    effect: Annotated[float, typer.Option(help="Cohen's d of the behaviour that has to be exceeded.")] = 0.3,
    kl_margin: Annotated[
        float | None, typer.Option(help="Nats that the KL may be worse by; default: 0, against a base not asked.")
    ] = None,
    resolve: Annotated[float, typer.Option(help="Also say how many prompts resolve this difference of rates.")] = 0.05,
    out: Annotated[
        Path, typer.Option(help="Folder for comparison.json and comparison.html; an earlier comparison goes.")
    ] = Path("runs/comparison"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compare evaluated runs on the same prompts: differences with intervals, tests, effect sizes, and a verdict.

    Runs that differ in seed, model or prompts alone are one arm; the first run's arm is the reference. Where all runs
    are one arm, the base is compared with the edited model, over them all. Examples:

    `iconoclast-tl compare runs/before runs/after`

    `iconoclast-tl compare runs/mean-0 runs/mean-1 runs/probe-0 runs/probe-1 --out runs/mean-probe`

    `iconoclast-tl compare runs/new-0 runs/new-1 --against runs/old-0 --against runs/old-1 --json`
    """
    from iconoclast_tl.cli.console import quieten_libraries, show
    from iconoclast_tl.cli.options import Common
    from iconoclast_tl.run_comparison.verdict import Rule

    rule = Rule(alpha, effect, kl_margin)
    quieten_libraries()
    from iconoclast_tl.report.tables.comparison import comparison_tables
    from iconoclast_tl.stages.comparison import compare_runs, write_comparison

    found = compare_runs(runs, against or [], rule, resolve)
    write_comparison(out, found)
    show(Common(json=as_json), found.to_json(), *comparison_tables(found))
