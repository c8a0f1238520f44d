"""`iconoclast-tl config`: effective settings and where each came from."""

from __future__ import annotations

import typer

from iconoclast_tl.cli.options import Common, with_common

app = typer.Typer(help="Settings: what is in force, and why.", no_args_is_help=True)


@app.command("show")
@with_common
def show_config(common: Common) -> None:
    """Print every effective setting with where it came from.

    Examples:

    `iconoclast-tl config show --recipe recipe.toml --set search.n_trials=60`

    `ICONOCLAST_TL_SEARCH__N_TRIALS=60 iconoclast-tl config show --json`
    """
    from iconoclast_tl.cli.console import show
    from iconoclast_tl.report.tables.settings import settings_table
    from iconoclast_tl.stages.run_folder import RunFolder
    from iconoclast_tl.stages.settings import effective_settings

    manifest = RunFolder(common.out).read_manifest() if common.out is not None else None
    before = manifest["settings"] if manifest else None
    rows = effective_settings(common.settings(), common.recipe, before).entries()
    as_json = {key: {"value": value, "from": source} for key, value, source in rows}
    show(common, as_json, settings_table(rows))
