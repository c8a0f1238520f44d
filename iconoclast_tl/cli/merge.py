"""`iconoclast-tl merge`: the chosen edit as plain weights, without loading the model."""

from __future__ import annotations

from iconoclast_tl.cli.options import Common, with_common

NAME = "merge"


@with_common
def command(common: Common) -> None:
    """Write the run's chosen edit into a copy of the model's files, one matrix at a time.

    For models that do not fit into memory: nothing is loaded whole, and nothing is compared with the preview. Where the
    model fits, `fold --merge` writes the same files and proves them.

    Examples:

    `iconoclast-tl merge --out runs/first`

    `iconoclast-tl merge --out runs/first --json`
    """
    from iconoclast_tl.cli.console import quieten_libraries, show

    quieten_libraries()
    from iconoclast_tl.foundation.progress import rich_track
    from iconoclast_tl.report.tables.fidelity import edited_line
    from iconoclast_tl.stages.fold import merged
    from iconoclast_tl.stages.run_folder import RunFolder
    from iconoclast_tl.stages.settings import effective_settings

    folder = RunFolder(common.folder())
    manifest = folder.read_manifest()
    settings = effective_settings(common.settings(), common.recipe, manifest["settings"] if manifest else None).settings
    done = merged(folder, settings, rich_track)
    show(common, done, edited_line(done), f"→ {folder.merged}")
