"""`iconoclast-tl doctor`: whether the tool's edits are exact on a model."""

from __future__ import annotations

from typing import Annotated

import typer

from iconoclast_tl.cli.options import Common, with_common

NAME = "doctor"


@with_common
def command(
    common: Common,
    saved: Annotated[
        bool, typer.Option("--saved", help="Write merged weights and reload them; takes time and room on the disk.")
    ] = False,
) -> None:
    """Check a model before it is worked on: writers, padding, gradients, and that folds are their previews.

    Random tokens and directions; no prompts are needed and no run folder is made. Exit status 1 where a check fails.

    Examples:

    `iconoclast-tl doctor --model owner/name`

    `iconoclast-tl doctor --model ./my-model --dtype bfloat16 --json`
    """
    from iconoclast_tl.cli.console import note, quieten_libraries, show

    quieten_libraries()
    from dataclasses import asdict

    from iconoclast_tl.architecture.sites import WRITERS, Component
    from iconoclast_tl.doctor.checks import examine
    from iconoclast_tl.foundation.progress import rich_track
    from iconoclast_tl.models.load import load_model
    from iconoclast_tl.report.tables.doctor import doctor_table
    from iconoclast_tl.stages.settings import effective_settings

    settings = effective_settings(common.settings(), common.recipe).settings
    model = load_model(settings.model)
    for line in model.notes:
        note(line)
    edited: tuple[Component, ...] = ("attn_out",) if settings.edit.attention_only else WRITERS
    asked = examine(model, saved, edited)
    checks = [ask() for ask in rich_track(asked, "doctor", len(asked))]
    about = f"{model.name}: {type(model.hf).__name__}, {model.dtype}, {model.n_layers} layers"
    show(common, {"model": about, "checks": [asdict(check) for check in checks]}, doctor_table(checks, about))
    if any(check.ok is False for check in checks):
        raise typer.Exit(1)
