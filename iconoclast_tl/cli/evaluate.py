"""`iconoclast-tl evaluate`: what a model, a model with an adapter, or a run does on the test split."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from iconoclast_tl.cli.options import Common, with_common

NAME = "evaluate"


@with_common
def command(
    common: Common,
    adapter: Annotated[Path | None, typer.Option(help="A PEFT adapter to compare with the model alone.")] = None,
) -> None:
    """Measure behaviour, spill and divergence on the test split, with intervals.

    A run folder with a chosen edit: the run. With --adapter: the model without and with it. Else: the model alone.
    Examples:

    `iconoclast-tl evaluate --out runs/first`

    `iconoclast-tl evaluate --model owner/name --adapter runs/first/adapter --out runs/check`
    """
    from iconoclast_tl.cli.console import show, workspace_of

    with workspace_of(common) as workspace:
        from iconoclast_tl import pipeline, prepare
        from iconoclast_tl.report.tables import results_table

        if adapter is None and workspace.folder.edit.is_file():
            results = pipeline.evaluate(workspace, prepare.chosen_edit(workspace))
        else:
            results = pipeline.evaluate_model(workspace, adapter)
        title = f"{results['behaviour']} of {results['model']}, test split"
        show(common, results, results_table(results, title), f"→ {workspace.folder.results}")
