"""Progress bars without tying the work to a terminal.

Functions that take long accept a `Track`: it wraps what they iterate over. The default is silent; the command line
hands in `rich_track`, which draws on standard error so that `--json` output stays clean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")


@runtime_checkable
class Track(Protocol):
    """`track(items, description, total)` yields the items and may show how far it is."""

    def __call__(self, items: Iterable[T], description: str, total: int) -> Iterator[T]:
        """Yield every item of `items` unchanged."""


Say = Callable[[str], None]
"""Takes a line that a user should read."""


def unheard(line: str) -> None:
    """Say nothing."""


def silent(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Yield the items and show nothing."""
    yield from items


def rich_track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Yield the items under a bar with the time left, on standard error; the bar goes away when it is done."""
    with rich_bars() as progress:
        task = progress.add_task(description, total=total)
        for item in items:
            yield item
            progress.advance(task)


def rich_bars() -> Progress:
    """What bars are drawn on: standard error, or nothing where that is no terminal (a log file)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
