"""Progress shows as bars on terminals and as dated lines in logs, and passes every item on."""

from __future__ import annotations

import re

import pytest

from iconoclast_tl.foundation import progress
from iconoclast_tl.foundation.progress import rich_bars, rich_track, silent


def test_a_log_gets_dated_lines_of_what_takes_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LOG_EVERY", 100.0)
    seconds = iter([0.0, 60.0, 120.0, 180.0, 250.0])
    monkeypatch.setattr(progress, "monotonic", lambda: next(seconds))
    assert list(rich_track(range(4), "count", 4)) == [0, 1, 2, 3]
    captured = capsys.readouterr()
    assert captured.out == ""
    dates, lines = zip(*(line.split("  ", 1) for line in captured.err.splitlines()), strict=True)
    assert lines == ("count: 2 of 4 after 2 min 0 s, about 2 min 0 s left", "count: 4 of 4 after 4 min 10 s")
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", date) for date in dates)


def test_items_pass_unchanged_and_a_log_file_gets_nothing_of_what_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(rich_track(range(3), "count", 3)) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")
    assert list(silent(range(3), "count", 3)) == [0, 1, 2]


def test_a_terminal_sees_the_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # how rich is told that a pipe is a terminal
    monkeypatch.setenv("TERM", "xterm")
    assert list(rich_track(range(3), "count", 3)) == [0, 1, 2]
    captured = capsys.readouterr()
    assert "count" in captured.err
    assert captured.out == ""


def test_bars_of_several_tasks_are_drawn_alike(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with rich_bars() as bars:
        bars.add_task("first", total=1)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with rich_bars() as bars:
        bars.add_task("first", total=1)
        bars.add_task("second", total=2)
    captured = capsys.readouterr()
    assert "first" in captured.err
    assert "second" in captured.err
    assert captured.out == ""
