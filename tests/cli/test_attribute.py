"""The command `attribute`: its table, its two files, and the run folder of the first heads."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.cli.conftest import Cli, content


@pytest.fixture
def told(common: list[str]) -> list[str]:
    """Markers that the random model shows to target prompts."""
    return [*common, "--set", "attribution.prompts=4", "--set", 'evaluation.markers=["a","b","c","d","e","f","g","h"]']


def test_a_folder_without_an_edit_is_attributed_along_its_direction(cli: Cli, told: list[str]) -> None:
    ended = cli("attribute", *told, "--run", "run", "--score", "projection", "--top", 5)
    assert ended.code == 0, ended.err
    assert "no edit in run: integrated and restore are left out" in ended.err
    assert "λ = 1 everywhere, direction of point" in ended.out
    found = json.loads(Path("run/attribution.json").read_text())
    assert set(found["methods"]) == {
        "direct",
        "direct-contrast",
        "gradient",
        "ablate",
        "interchange",
        "interchange-back",
    }
    parts = found["methods"]["gradient"]["parts"]
    assert [part["component"] for part in parts].count("head") == 8
    assert sum(p["value"] for p in found["methods"]["direct"]["parts"]) == pytest.approx(found["target"], rel=1e-4)
    page = Path("run/attribution.html").read_text()
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=", page)  # it needs nothing from elsewhere
    assert "Plotly.newPlot" in page
    assert json.loads(Path("run/manifest.json").read_text())["settings"]["attribution"]["top"] == 20  # asked once


def test_by_position_and_as_json(cli: Cli, told: list[str]) -> None:
    asked = ["--method", "direct,gradient,ablate", "--score", "projection", "--positions", "all", "--layers", "1"]
    ended = cli("attribute", *told, *asked, "--out", "run", "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    for method in ("direct", "gradient", "ablate"):
        by_position = found["methods"][method]["by_position"]
        assert by_position["positions"][-1] == 0
        assert len(by_position["values"]) == len(by_position["positions"])
    assert {part["layer"] for part in found["methods"]["ablate"]["parts"]} == {1}


def test_the_first_heads_get_a_run_folder_of_their_own(cli: Cli, told: list[str]) -> None:
    asked = ["--method", "gradient,ablate", "--score", "projection", "--edit-top-k", 3, "--by", "gradient"]
    ended = cli("attribute", *told, *asked, "--out", "run")
    assert ended.code == 0, ended.err
    assert "iconoclast-tl preview --chosen --out run/top-3" in ended.err
    before = content(Path("run"))
    edit = json.loads(Path("run/top-3/edit.json").read_text())
    assert sum(map(sum, edit["parts of attn_out"])) == 3
    assert edit["provenance"]["by"] == "gradient"
    assert cli("preview", "--chosen", "--out", "run/top-3").code == 0
    folded = cli("fold", "--out", "run/top-3", "--json")
    assert folded.code == 0, folded.err
    assert json.loads(folded.out)["ok"]
    assert cli("evaluate", "--out", "run/top-3").code == 0
    assert (Path("run/top-3/adapter/README.md")).is_file()
    kept = {name: data for name, data in content(Path("run")).items() if not name.startswith("top-3")}
    assert kept == {name: data for name, data in before.items() if not name.startswith("top-3")}


def test_the_edit_of_the_first_heads_is_that_of_its_study(cli: Cli, told: list[str]) -> None:
    """Its direction, its parts, and nothing of another edit that was there before."""
    common = [*told, "--out", "run", "--score", "projection", "--method", "direct,gradient", "--edit-top-k", 2]
    assert cli("attribute", *common, "--point", 1, "--by", "gradient").code == 0
    assert cli("fold", "--out", "run/top-2").code == 0
    first = json.loads(Path("run/top-2/state.json").read_text())
    assert first["fidelity"]["ok"]
    assert cli("attribute", *common, "--point", 2, "--layers", 0, "--by", "direct").code == 0
    second = json.loads(Path("run/top-2/state.json").read_text())
    assert second["chosen"]["edit"] != first["chosen"]["edit"]
    assert second["fidelity"] is None
    assert not Path("run/top-2/adapter").exists()
    assert all(name.startswith("L0H") for name in second["chosen"]["heads"])
    assert "direct-contrast" in second["chosen"]["rule"]
    with safe_open("run/top-2/edit.safetensors", "pt") as edit, safe_open("run/directions.safetensors", "pt") as all_:
        own, every = edit.get_tensor("directions")[0], all_.get_tensor("vectors")[0]
    assert float((own @ every[2]).min()) > 0.999
    assert float((own @ every[1]).abs().max()) < 0.99


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--layers", "2"], "layer 2 is outside 0..1: got a model with 2 layers"),
        (["--heads", "1.4"], "there is no head 1.4"),
        (["--point", "7"], "residual point 7 is outside 0..2"),
        (["--method", "restore"], "restore needs an edit"),
        (["--method", "integrated,restore"], "integrated, restore need an edit"),
        (["--method", "guess"], "the setting attribution.methods (command line) does not fit"),
        (["--score", "perplexity"], "there is no score 'perplexity' (attribution.score, command line)"),
        (["--edit-top-k", "9"], "there are fewer heads: got the first 9; want at most 8"),
        (
            ["--edit-top-k", "2", "--by", "restore", "--method", "ablate"],
            "cannot be ranked by a method that is not used",
        ),
        (["--heads", "0.0,0.1", "--edit-top-k", "3"], "there are fewer heads: got the first 3; want at most 2"),
        (["--layers", "1", "--heads", "0.2"], "--layers and --heads leave no part"),
        (["--by", "ablate"], "--by ranks heads for an edit"),
        (["--out", "other"], "--run and --out name two folders"),
    ],
)
def test_mistakes_are_told_in_a_line(cli: Cli, told: list[str], asked: list[str], said: str) -> None:
    ended = cli("attribute", *told, "--run", "run", "--score", "projection", *asked)
    assert ended.code == 2, ended.err
    assert said in ended.error
    assert not Path("run/attribution.json").exists()
