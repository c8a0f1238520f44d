"""`iconoclast-tl attribute`: which heads and MLPs carry the behaviour."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iconoclast_tl.cli.options import Common, with_common

if TYPE_CHECKING:
    from iconoclast_tl.attribution.parts import Part
    from iconoclast_tl.stages.workspace import Workspace

NAME = "attribute"


@with_common
def command(
    common: Common,
    run: Annotated[Path | None, typer.Option(help="The run folder; the same as --out.")] = None,
    method: Annotated[
        str | None,
        typer.Option(help="Of direct, gradient, integrated, ablate, restore, interchange, with commas; default: all."),
    ] = None,
    score: Annotated[
        str | None, typer.Option(help="log-odds (default), logit, projection, or one of a --plugin.")
    ] = None,
    point: Annotated[
        float | None,
        typer.Option(help="Residual point of the direction, λ = 1; default: the run's chosen edit, or the best d′."),
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Layers to look at, e.g. 2-5; default: all.")] = None,
    heads: Annotated[str | None, typer.Option(help="Heads to look at, as layer.head: 2.0,2.3; default: all.")] = None,
    positions: Annotated[str | None, typer.Option(help="last (default) or all: also by position.")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Parts to list; default: 20.")] = None,
    prompts: Annotated[int | None, typer.Option(help="Train prompts of each side; default: 32.")] = None,
    edit_top_k: Annotated[
        int | None, typer.Option("--edit-top-k", min=1, help="Also write the edit of the first k heads: DIR/top-k.")
    ] = None,
    by: Annotated[str | None, typer.Option(help="The method that ranks heads for --edit-top-k.")] = None,
) -> None:
    """Attribute the behaviour to the embedding, every head and every MLP; write attribution.json and attribution.html.

    Examples:

    `iconoclast-tl attribute --run runs/first`

    `iconoclast-tl attribute --run runs/first --method gradient,ablate --score logit --top 10`

    `iconoclast-tl attribute --run runs/first --edit-top-k 10`, then `iconoclast-tl fold --out runs/first/top-10`
    """
    from dataclasses import replace

    from iconoclast_tl.cli.console import note, show, workspace_of
    from iconoclast_tl.foundation.errors import UserError

    if run is not None and common.out is not None and run != common.out:
        raise UserError("--run and --out name two folders", got=f"{run} and {common.out}", want="one of them")
    if by is not None and edit_top_k is None:
        raise UserError("--by ranks heads for an edit", got=f"--by {by}", mend="pass --edit-top-k, too")
    named = None if method is None else [part.strip() for part in method.split(",")]
    given = {"methods": named, "score": score, "positions": positions, "top": top, "prompts": prompts}
    changes = _checked({name: value for name, value in given.items() if value is not None})
    with workspace_of(replace(common, out=run or common.out)) as opened:
        from iconoclast_tl.attribution.ranking import require_ranking
        from iconoclast_tl.report.tables.attribution import agreement_table, attribution_table
        from iconoclast_tl.stages.attribution import attributed, top_heads_edit

        # What is asked once is no setting of the run.
        config = opened.settings.attribution.model_copy(update=changes)
        workspace = replace(opened, settings=opened.settings.model_copy(update={"attribution": config}))
        only = _only(workspace, layers, heads)
        require_ranking(config.methods, workspace.model, edit_top_k, by, only)
        report = attributed(workspace, point, only)
        for line in report.study.warnings:
            note(line)
        study, folder = report.study, workspace.folder
        if edit_top_k is not None:
            made = top_heads_edit(workspace, study, edit_top_k, by)
            note(f"the edit of {edit_top_k} heads is in {made.path}: iconoclast-tl preview --chosen --out {made.path}")
        tables = attribution_table(study, report.top), agreement_table(study)
        show(common, report.to_json(), *tables, f"→ {folder.attribution_page}")


def _checked(given: dict[str, Any]) -> dict[str, Any]:
    """The same as settings; `UserError` where one does not fit."""
    from iconoclast_tl.stages.settings import effective_settings

    config = effective_settings({"attribution": given}).settings.attribution
    return {name: getattr(config, name) for name in given}


def _only(workspace: Workspace, layers: str | None, heads: str | None) -> list[Part] | None:
    """The parts that are named; None: all."""
    from iconoclast_tl.architecture.parts import head_factors
    from iconoclast_tl.attribution.parts import model_parts
    from iconoclast_tl.cli.preview import parse_layers

    if layers is None and heads is None:
        return None
    chosen = set(parse_layers(layers, workspace.model.n_layers))
    parts = [part for part in model_parts(workspace.model.hf) if part.layer in chosen]
    if heads is None:
        return parts
    from iconoclast_tl.foundation.errors import UserError

    factors = head_factors([name.strip() for name in heads.split(",")], workspace.model.hf)
    named = [part for part in parts if part.head is not None and bool(factors[part.layer, part.head])]
    if not named:
        raise UserError("--layers and --heads leave no part", got=f"--layers {layers} --heads {heads}")
    return named
