"""`iconoclast-tl fold`: the chosen edit as a PEFT adapter or plain weights, verified."""

from __future__ import annotations

from typing import Annotated

import typer

from iconoclast_tl.cli.options import Common, with_common

NAME = "fold"


@with_common
def command(
    common: Common,
    merge: Annotated[
        bool | None, typer.Option("--merge/--no-merge", help="Save plain weights besides the adapter.")
    ] = None,
) -> None:
    """Fold the run's chosen edit into o_proj and down_proj, and prove it equal to the preview.

    Examples:

    `iconoclast-tl fold --out runs/first`

    `iconoclast-tl fold --merge --out runs/first`
    """
    from iconoclast_tl.cli.console import show, workspace_of

    with workspace_of(common, fold__merge=merge) as workspace:
        from iconoclast_tl.report.tables.fidelity import fidelity_table
        from iconoclast_tl.stages.edits import chosen_edit
        from iconoclast_tl.stages.fold import folded

        fidelity = folded(workspace, chosen_edit(workspace))
        show(common, fidelity, fidelity_table(fidelity), f"→ {workspace.folder.adapter}")
