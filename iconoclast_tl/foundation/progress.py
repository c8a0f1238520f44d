"""Progress bars without tying the work to a terminal.

Functions that take long accept a `Track`: it wraps what they iterate over. The default is silent; the command line
hands in `rich_track`, which draws on standard error so that `--json` output stays clean. Where that is no terminal but
a log, it writes a dated line now and then.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from time import monotonic, strftime
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


LOG_EVERY = 30.0
"""Seconds between two lines of progress in a log."""


def rich_track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Yield the items under a bar with the time left, on standard error; the bar goes away when it is done.

    In a log: a line with the date for what takes longer than `LOG_EVERY` seconds, and from then on as often.
    """
    with rich_bars() as progress:
        if progress.console.is_dumb_terminal or not progress.console.is_terminal:
            yield from _logged(items, description, total)
            return
        task = progress.add_task(description, total=total)
        for item in items:
            yield item
            progress.advance(task)


def dated(line: str) -> str:
    """The line behind the date and time of this moment, such as `2026-11-29 12:00:01  search: 3 of 7`."""
    return f"{strftime('%Y-%m-%d %H:%M:%S')}  {line}"


def _logged(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    begun = last = monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = monotonic()
        if now - last >= LOG_EVERY:
            last, taken = now, now - begun
            left = f", about {_duration(taken / done * (total - done))} left" if done < total else ""
            print(
                dated(f"{description}: {done} of {total} after {_duration(taken)}{left}"), file=sys.stderr, flush=True
            )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def rich_bars() -> Progress:
    """What bars are drawn on: standard error, or nothing where that is no terminal (a log file)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
