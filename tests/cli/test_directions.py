"""`directions`: every estimator, what is written, how one is chosen, and what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from iconoclast_tl.directions.estimators.registry import ESTIMATORS
from tests.cli.conftest import Cli, content

QUICK = ["--compare", "none", "--resamples", 0]


def letters(more: int = 0) -> str:
    """Markers that a random model shows in some of its responses."""
    return "evaluation.markers=" + json.dumps([*"abcdefghijklm"[: 6 + more]])


def test_every_estimator_is_shown_side_by_side_on_the_same_activations(cli: Cli, common: list[str]) -> None:
    assert cli("collect", *common, "--out", "run").code == 0
    collected = content(Path("run"))["activations.safetensors"]
    told = set()
    for name in ESTIMATORS:
        done = cli("directions", "--estimator", name, *QUICK, "--out", "run", "--json")
        assert done.code == 0, done.err
        found = json.loads(done.out)
        assert found["estimator"] == name
        assert found["selection"]["point"] == found["best"]
        told.add(content(Path("run"))["directions.safetensors"])
        assert ("fell back to mean" in done.err) == (name in ("probe", "probe+pca", "cones")), done.err
    assert len(told) > 8
    assert content(Path("run"))["activations.safetensors"] == collected


def test_the_page_needs_no_network_and_the_table_names_the_best_point(cli: Cli, common: list[str]) -> None:
    done = cli("directions", *common, "--compare", "lda,pca", "--resamples", 3, "--out", "run")
    assert done.code == 0, done.err
    page = Path("run/directions.html").read_text()
    assert "Cosines of estimators" in page
    assert "<script src" not in page
    assert "lda" in done.out
    assert "best: point" in done.out


def test_a_probe_asks_what_the_model_did_once(cli: Cli, common: list[str]) -> None:
    done = cli("directions", *common, "--set", letters(), "--estimator", "probe", *QUICK, "--out", "run")
    assert done.code == 0, done.err
    labels = json.loads(Path("run/labels.json").read_text())
    assert len(labels["target"]) == 6  # of ten prompts, 60% train
    before = Path("run/labels.json").stat().st_mtime_ns
    assert cli("directions", "--estimator", "probe+pca", *QUICK, "--out", "run").code == 0
    assert Path("run/labels.json").stat().st_mtime_ns == before
    assert cli("directions", *common, *QUICK, "--out", "other").code == 0
    assert not Path("other/labels.json").exists()  # the negative control


def settings_of(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(folder) / "manifest.json").read_text())["settings"]
    return found


LOOSE = ["--set", "directions.selection.drop_last=0", "--set", "directions.selection.max_kl=100"]
LOOSE += ["--set", "directions.selection.min_induce=-100", "--set", 'scores.tokens=["a"]']


@pytest.mark.parametrize("rule", ["arditi", "cosmic"])
def test_a_selection_keeps_every_candidates_scores(cli: Cli, common: list[str], rule: str) -> None:
    options = [*common, "--set", letters(), "--positions", 3, "--select", rule, *LOOSE, *QUICK]
    done = cli("directions", *options, "--out", "run")
    assert done.code == 0, done.err
    assert f"{rule} chose position" in done.err
    kept = json.loads(Path("run/selection.json").read_text())
    asked = [row for row in kept["candidates"] if row["removed_by"] is None]
    assert {row["position"] for row in kept["candidates"]} == {-1, -2, -3}
    assert all(row["kl"] is not None and row["bypass"] is not None for row in asked)
    assert {row["point"] for row in kept["candidates"] if row["removed_by"]} == {2}  # no layer reads the last point
    best = min(asked, key=lambda row: row["bypass"]) if rule == "arditi" else None
    if best is not None:
        assert (best["position"], best["point"]) == (kept["position"], kept["point"])
    with safe_open("run/directions.safetensors", "pt") as file:
        about = json.loads(file.metadata()["about"])
    assert about["selection"] == {"rule": rule, "position": kept["position"], "point": kept["point"]}
    shown = cli("preview", "--out", "run")
    assert f"point {kept['point']}," in shown.out, shown.err
    again = cli("directions", "--out", "run")
    assert again.code == 0
    assert "chose" not in again.err  # nothing is asked again


def test_where_every_candidate_is_filtered_out_the_rules_are_named(cli: Cli, common: list[str]) -> None:
    tokens = ["--set", 'scores.tokens=["a"]']
    assert cli("collect", *common, "--set", letters(), *tokens, "--out", "run").code == 0
    before = content(Path("run"))
    strict = [*LOOSE, "--set", "directions.selection.max_kl=1e-9"]
    done = cli("directions", "--select", "arditi", *strict, "--out", "run")
    assert done.code == 2
    for part in ("leaves none of", "point 2 or later removed 1", "KL above 1e-09 removed", "selection.max_kl"):
        assert part in done.error
    assert settings_of("run") == json.loads(before["manifest.json"] or b"")["settings"]
    assert content(Path("run")).keys() == before.keys()
    assert cli("directions", *QUICK, "--out", "run").code == 0


def test_refinement_tells_where_it_stops(cli: Cli, common: list[str]) -> None:
    """What it finds is seen on a model in which further directions matter, in `tests/test_refinement_job.py`."""
    tokens = ["--set", letters(), "--set", 'scores.tokens=["a"]']
    done = cli("directions", *common, *tokens, "--refine", 2, *QUICK, "--out", "run")
    assert done.code == 0, done.err
    assert "refinement 1: only 0 target train prompts still begin the behaviour; it ends here" in done.err
    with safe_open("run/directions.safetensors", "pt") as file:
        assert json.loads(file.metadata()["about"])["refinement"]["rounds"] == []
        assert len(file.get_tensor("vectors")) == 1


def test_an_unknown_estimator_lists_those_there_are(cli: Cli, common: list[str]) -> None:
    done = cli("directions", *common, "--estimator", "magic", "--out", "run")
    assert done.code == 2
    assert all(name in done.error for name in ESTIMATORS)
    assert not Path("run").exists()


def test_another_estimator_is_refused_once_a_search_has_gone_by_the_directions(cli: Cli, common: list[str]) -> None:
    some = [*common, "--set", letters(7), "--search", "tpe", "--set", "search.n_startup_trials=2", "--trials", 2]
    done = cli("search", *some, "--out", "run")
    assert done.code == 0, done.err
    before = content(Path("run"))["directions.safetensors"]
    other = cli("directions", "--estimator", "median", *QUICK, "--out", "run")
    assert other.code == 2
    assert "holds a search by another directions.estimator: got median; want mean" in other.error
    assert settings_of("run")["directions"]["estimator"] == "mean"
    assert cli("directions", "--compare", "median", "--resamples", 2, "--out", "run").code == 0
    assert content(Path("run"))["directions.safetensors"] == before
