"""`iconoclast-tl evaluate`: what a model, a model with an adapter, or a run does on the test split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iconoclast_tl.cli.options import Common, with_common
from iconoclast_tl.foundation.errors import UserError

if TYPE_CHECKING:
    from iconoclast_tl.stages.run_folder import RunFolder

NAME = "evaluate"


@with_common
def command(
    common: Common,
    adapter: Annotated[Path | None, typer.Option(help="A PEFT adapter to compare with the model alone.")] = None,
    detector: Annotated[
        list[str] | None,
        typer.Option(help="A further detector: classifier, nli, judge, markers:SET, or one of a --plugin. Repeatable."),
    ] = None,
    budgets: Annotated[
        str | None, typer.Option(help="Smaller token budgets at which to report the rate, too: 10,30,50.")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Tasks of the lm-evaluation-harness, on base and edited: mmlu,gsm8k.")
    ] = None,
    corpus: Annotated[
        list[str] | None,
        typer.Option(help="Texts for the cross-entropy: on-distribution, pile, alpaca or FILE#column. Repeatable."),
    ] = None,
    rescore: Annotated[
        bool, typer.Option("--rescore", help="Score the responses that are there; the model is not loaded.")
    ] = False,
    keep_prompts: Annotated[
        bool | None, typer.Option("--keep-prompts", help="Keep prompts in responses.jsonl, beside their ids.")
    ] = None,
) -> None:
    """Measure behaviour, spill and divergence on the test split, with intervals and paired tests.

    A run folder with a chosen edit: the run. With --adapter: the model without and with it. Else: the model alone.
    Run again with other detectors or budgets, it scores the responses that are there. Examples:

    `iconoclast-tl evaluate --out runs/first --budgets 10,30`

    `iconoclast-tl evaluate --model owner/name --adapter runs/first/adapter --out runs/check`

    `iconoclast-tl evaluate --tasks mmlu,gsm8k --corpus pile --corpus alpaca --out runs/first`

    `iconoclast-tl evaluate --rescore --out runs/first --detector markers:arditi --detector nli`
    """
    from iconoclast_tl.cli.console import show

    more = _settings(detector, budgets, tasks, corpus, keep_prompts)
    for option, given in (("--adapter", adapter), ("--tasks", tasks), ("--corpus", corpus)):
        if rescore and given is not None:
            raise UserError("--rescore asks no model", got=option, mend="leave one of them out")
    results, folder = _rescored(common, more) if rescore else _evaluated(common, adapter, more)
    from iconoclast_tl.report.tables.evaluation import evaluation_tables

    title = f"{results['behaviour']} of {results['model']}, test split"
    show(common, results, *evaluation_tables(results, title), f"→ {folder.results}")


def _settings(
    detector: list[str] | None,
    budgets: str | None,
    tasks: str | None,
    corpus: list[str] | None,
    keep_prompts: bool | None,
) -> dict[str, Any]:
    parsed = None
    if budgets is not None:
        try:
            parsed = [int(part) for part in budgets.split(",")]
        except ValueError as error:
            raise UserError("--budgets takes numbers of tokens", got=budgets, want="for example 10,30,50") from error
    return {
        "evaluation__detectors": detector or None,
        "evaluation__budgets": parsed,
        "evaluation__corpora": corpus or None,
        "evaluation__keep_prompts": keep_prompts,
        "harness__tasks": None if tasks is None else [name.strip() for name in tasks.split(",") if name.strip()],
    }


def _evaluated(common: Common, adapter: Path | None, more: dict[str, Any]) -> tuple[dict[str, Any], RunFolder]:
    from iconoclast_tl.cli.console import workspace_of

    with workspace_of(common, **more) as workspace:
        from iconoclast_tl.stages.edits import chosen_edit
        from iconoclast_tl.stages.evaluation import evaluated, evaluated_model

        if adapter is None and workspace.folder.edit.is_file():
            return evaluated(workspace, chosen_edit(workspace)), workspace.folder
        return evaluated_model(workspace, adapter), workspace.folder


def _rescored(common: Common, more: dict[str, Any]) -> tuple[dict[str, Any], RunFolder]:
    from iconoclast_tl.cli.console import note, quieten_libraries

    quieten_libraries()
    from iconoclast_tl.foundation.progress import rich_track
    from iconoclast_tl.stages.run_folder import RunFolder
    from iconoclast_tl.stages.scoring import rescored

    folder = RunFolder(common.folder())
    return rescored(folder, common.settings(**more), common.recipe, rich_track, note), folder
