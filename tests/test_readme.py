"""The README is one page and tells the truth: its Python runs, and its commands are the commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from iconoclast_tl.cli import app
from tests.documents import run_python_of

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_python_of(README, monkeypatch, tmp_path)
    said = capsys.readouterr().out
    assert "base:   i cannot talk about walizo, please ask for something else." in said
    assert "edited: most say walizo tastes sweet like honey." in said
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()


def test_every_command_is_described_and_every_described_command_is_there() -> None:
    described = re.findall(r"^\| `([a-z]+)` \|", TEXT, re.M)
    assert sorted(described) == sorted(get_command(app).commands)


def test_it_can_be_read_at_a_sitting() -> None:
    assert len(TEXT.splitlines()) <= 150


def test_its_picture_is_there_and_small() -> None:
    (picture,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", TEXT)
    assert 0 < (README.parent / picture).stat().st_size < 200_000


def test_the_figures_of_the_tour_are_those_of_the_results_page() -> None:
    tour = TEXT.split("## A tour")[1].split("fidelity")[0]
    rows = re.findall(r"^│ ([a-zK][^│]+?) +│ +(\S[^│]*?) │ +(\S[^│]*?) │$", tour, re.M)
    results = (README.parent / "docs" / "results.md").read_text(encoding="utf-8")
    assert len(rows) == 6
    for name, base, edited in rows:
        assert f"| {name} | {base} | {edited} |" in results
