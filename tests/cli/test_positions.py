"""`directions --show-positions`, and the setting that it is for."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Cli


def test_positions_are_shown_and_nothing_is_collected(cli: Cli, common: list[str]) -> None:
    """The tokenizer of these tests knows single characters."""
    shown = cli("directions", *common, "--show-positions", "--out", "run", "--json")
    assert (shown.code, shown.err) == (0, "")
    rows = json.loads(shown.out)
    assert "".join(row["text"] for row in rows) == "<assistant>"
    assert [row["position"] for row in rows] == list(range(-11, 0))
    table = cli("directions", "--show-positions", "--out", "run")
    assert all(f"{row['position']} │" in table.out and f"│ {row['text']!r}" in table.out for row in rows)
    assert not (Path("run") / "activations.safetensors").exists()
    assert cli("directions", "--out", "run").code == 0  # the negative control
    assert (Path("run") / "activations.safetensors").exists()


def test_raw_prompts_have_one_position(cli: Cli, common: list[str]) -> None:
    shown = cli("directions", *common, "--raw-prompts", "--show-positions", "--out", "run")
    assert "the prompt's own last token" in shown.out
    told = cli("collect", *common, "--raw-prompts", "--set", "activations.positions=2", "--out", "other")
    assert told.code == 2
    assert "raw prompts, which have no template; want 1" in told.error


def test_positions_are_a_number_or_template(cli: Cli, common: list[str]) -> None:
    for given, told in (("0", "greater than or equal to 1 or 'template'"), ("all", "'template'"), ("12", "at most 11")):
        done = cli("collect", *common, "--set", f"activations.positions={given}", "--out", "run")
        assert done.code == 2
        assert "activations.positions" in done.error
        assert told in done.error
        assert not Path("run").exists()
    assert cli("collect", *common, "--set", "activations.positions=11", "--out", "run").code == 0
