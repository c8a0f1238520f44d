"""`evaluate`: what is asked once, and what is scored of it later without the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from iconoclast_tl.models import load as loading
from iconoclast_tl.stages import evaluation as evaluation_stage
from tests.cli.conftest import Cli, content

LETTERS = ["--set", 'evaluation.markers=["e", "t"]']
"""A random model says some of them."""


@pytest.fixture
def run(cli: Cli, common: list[str]) -> Path:
    """An evaluated run with a chosen edit."""
    kept = cli("preview", *common, *LETTERS, "--add-point", 1, "--coefficient", -3, "--keep", "--out", "run")
    assert kept.code == 0, kept.err
    assert cli("evaluate", "--out", "run").code == 0
    return Path("run")


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model is an error here."""

    def refuse(*given: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(loading, "load_model", refuse)
    monkeypatch.setattr("iconoclast_tl.stages.opening.load_model", refuse)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "responses.jsonl").read_text().splitlines()]


def test_a_new_detector_is_asked_of_the_responses_that_are_there(cli: Cli, run: Path, no_model: None) -> None:
    before, first = rows_of(run), json.loads((run / "results.json").read_text())
    again = cli(
        "evaluate", "--rescore", "--detector", "markers:disclaimers", "--budgets", "1,2", "--out", "run", "--json"
    )
    assert again.code == 0, again.err
    results = json.loads(again.out)
    assert results["detectors"].keys() == {"markers", "markers:disclaimers"}
    assert results["base"]["by_budget"].keys() == {"1", "2"}
    for key in ("behaviour_rate", "kl_sequence", "words"):
        assert results["edited"][key] == first["edited"][key]
    assert results["fidelity"] == first["fidelity"] if "fidelity" in first else True
    for old, new in zip(before, rows_of(run), strict=True):
        assert new["base"]["labels"].keys() == {"markers", "markers:disclaimers"}
        assert {**new["base"], "labels": old["base"]["labels"]} == old["base"]
        assert "prompt" not in new
    shown = cli("evaluate", "--rescore", "--out", "run")  # what was asked for stays asked for
    assert "by detector" in shown.out
    assert "rate by token budget" in shown.out
    kept = json.loads((run / "manifest.json").read_text())["settings"]["evaluation"]
    assert (kept["detectors"], kept["budgets"]) == (["markers:disclaimers"], [1, 2])


def test_evaluating_again_asks_the_model_nothing_that_it_has_said(
    cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = json.loads((run / "results.json").read_text())

    def refuse(*given: Any) -> None:
        raise AssertionError("the model was asked")

    monkeypatch.setattr(evaluation_stage, "ask_base_and_edited", refuse)
    again = cli("evaluate", "--detector", "markers:refusal", "--out", "run", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["base"] == first["base"]


def test_prompts_are_kept_only_where_that_is_asked_for(cli: Cli, run: Path, no_model: None) -> None:
    assert all("prompt" not in row for row in rows_of(run))
    assert cli("evaluate", "--rescore", "--keep-prompts", "--out", "run").code == 0
    assert {row["prompt"].split()[0] for row in rows_of(run)} == {"target", "neutral"}
    assert cli("evaluate", "--rescore", "--out", "run").code == 0
    assert all("prompt" in row for row in rows_of(run))  # what was asked for stays asked for


def test_a_recipe_names_detectors_of_a_finished_run(cli: Cli, run: Path, no_model: None) -> None:
    Path("more.toml").write_text('[evaluation]\ndetectors = ["markers:disclaimers"]\n')
    again = cli("evaluate", "--rescore", "--recipe", "more.toml", "--out", "run", "--json")
    assert json.loads(again.out)["detectors"].keys() == {"markers", "markers:disclaimers"}


def test_an_adapter_is_evaluated_into_a_folder_of_its_own(cli: Cli, run: Path) -> None:
    before = content(run)["results.json"]
    refused = cli("evaluate", "--adapter", "x", "--out", "run")
    assert "run holds a run of its own" in refused.error
    assert content(run)["results.json"] == before


def test_prompts_that_have_changed_are_not_taken_for_those_that_were_asked(cli: Cli, run: Path, no_model: None) -> None:
    Path("target.txt").write_text("".join(f"another {i}\n" for i in range(10)))
    before = content(run)
    refused = cli("evaluate", "--rescore", "--keep-prompts", "--out", "run")
    assert refused.code == 2
    assert "the prompts of run have changed" in refused.error
    assert content(run) == before


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--detector", "oracle"], "there is no detector 'oracle': want one of classifier, judge, markers, nli, or"),
        (["--detector", "markers:nope"], "there is no marker set 'nope'"),
        (["--budgets", "1,two"], "--budgets takes numbers of tokens"),
        (["--budgets", "9"], "a budget lies outside the response budget: got 9; want 1 to 4 tokens"),
        (["--adapter", "x"], "--rescore asks no model: got --adapter"),
        (["--tasks", "x"], "--rescore asks no model: got --tasks"),
        (["--corpus", "pile"], "--rescore asks no model: got --corpus"),
    ],
)
def test_mistakes_change_nothing(cli: Cli, run: Path, no_model: None, given: list[str], told: str) -> None:
    before = content(run)
    refused = cli("evaluate", "--rescore", *given, "--out", "run")
    assert refused.code == 2
    assert told in refused.error
    assert content(run) == before


def test_only_what_was_evaluated_is_scored_again(cli: Cli, common: list[str], no_model: None) -> None:
    refused = cli("evaluate", "--rescore", "--out", "nowhere")
    assert "nowhere holds no responses to score" in refused.error
    assert not Path("nowhere").exists()


def test_responses_of_an_earlier_version_are_told(cli: Cli, run: Path, no_model: None) -> None:
    rows = [{**row, "base": {"text": "x", "finished": True, "behaviour": False}} for row in rows_of(run)]
    (run / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused = cli("evaluate", "--rescore", "--out", "run")
    assert "run/responses.jsonl is not a transcript of this version: got line 1 without 'ends'" in refused.error


def test_a_detector_in_the_settings_is_checked_before_the_model_loads(
    cli: Cli, common: list[str], no_model: None
) -> None:
    refused = cli("search", *common, "--set", "evaluation.detector=oracle", "--out", "run")
    assert "there is no detector 'oracle'" in refused.error
    assert not Path("run").exists()


def test_a_transcript_that_is_cut_off_is_not_scored_and_is_asked_for_again(
    cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, results = (run / "responses.jsonl").read_text(), json.loads((run / "results.json").read_text())
    (run / "responses.jsonl").write_text("".join(whole.splitlines(keepends=True)[:3]))
    refused = cli("evaluate", "--rescore", "--out", "run")
    assert "run/responses.jsonl is incomplete: got {'target': 2, 'neutral': 1}" in refused.error
    again = cli("evaluate", "--out", "run", "--json")
    assert again.code == 0, again.err
    assert "run/responses.jsonl is incomplete: asked again" in again.err
    assert (run / "responses.jsonl").read_text() == whole
    assert json.loads(again.out)["edited"] == results["edited"]
