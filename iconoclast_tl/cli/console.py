"""What commands print: tables or JSON to standard output, notes and progress to standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from iconoclast_tl.cli.options import Common

if TYPE_CHECKING:
    from rich.console import RenderableType

    from iconoclast_tl.stages.workspace import Workspace


def show(common: Common, result: Any, *tables: RenderableType) -> None:
    """Print `result` as JSON where `--json` was given, else the tables."""
    if common.json:
        print(json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False))
        return
    from rich.console import Console

    console = Console()
    for table in tables:
        console.print(table)


def note(line: str) -> None:
    """Print a note to standard error, with the date where that is a log and no terminal."""
    from iconoclast_tl.foundation.progress import dated

    print(line if sys.stderr.isatty() else dated(line), file=sys.stderr, flush=True)


@contextmanager
def workspace_of(common: Common, **settings: Any) -> Iterator[Workspace]:
    """Open the workspace that the options mean, quietly: libraries' warnings and bars are not for the user."""
    quieten_libraries()
    from iconoclast_tl.foundation.progress import rich_track
    from iconoclast_tl.stages.run import Run

    options = common.settings(**settings)
    run = Run(common.folder(), recipe=common.recipe, settings=options, track=rich_track, say=note)
    try:
        with run.open() as workspace:
            yield workspace
    except KeyboardInterrupt:
        note("stopped; run the same command again to continue")
        raise  # typer exits with 130


def quieten_libraries() -> None:
    """Silence advice and progress bars that libraries print on loading; their errors still come through."""
    import logging
    import os
    import warnings

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="(transformers|transformer_lens|peft|torch)")
    for name in ("transformer_lens", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
