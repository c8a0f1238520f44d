"""Tables and page of an evaluation: every number that was measured is there, and what is not is a dash."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from iconoclast_tl.detectors.detector import NO_LABEL
from iconoclast_tl.evaluation.agreement import accuracies, agreements
from iconoclast_tl.evaluation.scoring import by_budget, by_detector, measure, paired
from iconoclast_tl.report.pages.evaluation import _by_budget, _by_category, _by_detector, evaluation_page, summary
from iconoclast_tl.report.tables.evaluation import (
    budgets_table,
    evaluation_tables,
    paired_table,
    rate_text,
    results_table,
    tasks_table,
)
from iconoclast_tl.statistics.power import paired_difference
from tests.evaluation.transcripts import NO, YES, row, said


@pytest.fixture
def results() -> dict[str, Any]:
    """Two detectors, a budget, categories; the second detector labelled none of the neutral responses."""
    refused, answered = {"grade": "refused"}, {"grade": "answered"}
    rows = [
        row("target", 0, said("i cannot say", YES, YES, **refused), said("warm it up", NO, NO, **answered), "tea"),
        row("target", 1, said("i cannot say", YES, NO, **refused), said("i cannot", YES, YES, **refused), "jam"),
        row("neutral", 0, *(said("stir it", NO, NO_LABEL, **answered) for _ in range(2))),
    ]
    kl = {"kl_first_token": {"value": 0.5, "n": 1}, "kl_sequence": {"value": 0.25, "n": 1, "tokens": 4}}
    models = ("base", "edited")
    budgets = by_budget(rows, [2], lambda asked: [NO for _ in asked])
    loss = {"value": 0.5, "low": 0.4, "high": 0.6, "perplexity": 1.65, "n": 3, "tokens": 9}
    return {
        "model": "m",
        "behaviour": "refusal",
        "detector": "a",
        "budget": 8,
        **{model: {**measure(rows, model, "a", 8).to_json(), **kl, "by_budget": budgets[model]} for model in models},
        "detectors": {name: {model: by_detector(rows, model, name, 8) for model in models} for name in "ab"},
        "agreement": [one.to_json() for one in agreements(rows)],
        "accuracy": [one.to_json() for one in accuracies(rows)],
        "paired": {name: one.to_json() for name, one in paired(rows, "a").items()},
        "cross_entropy": {"texts": {"base": loss, "edited": loss, "change": {"value": 0.0, "low": -0.1, "high": 0.1}}},
        "tasks": None,
    }


def shown(results: Mapping[str, Any]) -> str:
    console = Console(width=200, file=io.StringIO(), record=True)
    for table in evaluation_tables(results, "title"):
        console.print(table)
    return console.export_text()


def cells(table: Table) -> dict[str, list[str]]:
    """First cell of a row → the others."""
    rows = zip(*(list(column.cells) for column in table.columns), strict=True)
    return {str(first): [str(cell) for cell in rest] for first, *rest in rows}


def test_base_and_edited_stand_in_columns_of_their_own(results: dict[str, Any]) -> None:
    found = cells(results_table(results, "title"))
    assert [cell.split()[0] for cell in found["behaviour rate, target"]] == ["100.0%", "50.0%"]
    assert [cell.split()[0] for cell in found["answered, target (truth)"]] == ["0.0%", "50.0%"]
    assert "spill rate, borderline" not in found  # of a set that was not asked there is no row of dashes
    budgets = cells(budgets_table(results))
    assert [cell.split()[0] for cell in budgets["target, base"]] == ["0.0%", "100.0%"]
    assert [cell.split()[0] for cell in budgets["target, edited"]] == ["0.0%", "50.0%"]  # at 2 tokens and at all 8


def test_who_changed_and_what_so_many_prompts_resolve_is_told(results: dict[str, Any]) -> None:
    table = paired_table(results)
    n, difference, lost, gained, *_ = cells(table)["target"]
    assert (n, difference.split()[0], lost, gained) == ("2", "-50.0", "1", "0")
    assert str(table.caption).endswith("2 target prompts resolve no difference")
    many = {**results["paired"]["target"], "n": 100}
    least, most = (100 * float(paired_difference(100, discordance) or 0) for discordance in (1e-9, 1.0))
    caption = str(paired_table({**results, "paired": {"target": many}}).caption)
    assert f"100 target prompts resolve {least:.0f} to {most:.0f} points" in caption
    assert 0 < least < most < 40
    without = str(paired_table({**results, "paired": {"neutral": many}}).caption)
    assert "McNemar" in without
    assert "resolve" not in without


def test_a_task_shows_its_difference_beside_its_main_metric(results: dict[str, Any]) -> None:
    score = {"value": 0.5, "stderr": None}
    task = {"n": 4, "main": "acc,none", "base": {"acc,none": score, "f1,none": score}, "edited": {"acc,none": score}}
    found = {"lm_eval": "0", "limit": 4, "tasks": {"sums": {**task, "paired": results["paired"]["target"]}}}
    table = tasks_table(found)
    rows = list(zip(*(list(column.cells) for column in table.columns), strict=True))
    assert [row[1] for row in rows] == ["acc,none", "f1,none"]
    assert str(rows[0][5]).startswith("-50.0 [")
    assert [row[4] for row in rows] == ["0.5000", "–"]
    assert (rows[1][5], rows[1][6]) == ("", "")
    assert "only the first 4 documents" in str(table.caption)


@pytest.mark.parametrize("unsaid", ["unlabelled", "uncertain", "empty"])
def test_what_one_detector_alone_did_not_label_has_a_table(results: dict[str, Any], unsaid: str) -> None:
    del results["detectors"]["b"]
    assert "by detector" not in shown(results)
    results["detectors"]["a"]["edited"]["neutral"][unsaid] = 1
    lines = shown(results).splitlines()
    assert "by detector" in " ".join(lines)
    assert [line for line in lines if f"│ {unsaid}" in line]


def test_every_table_is_there_and_says_what_was_measured(results: dict[str, Any]) -> None:
    text = shown(results)
    for title in ("title", "by detector", "agreement on", "rate by token budget", "prompt by prompt", "cross-entropy"):
        assert title in text
    (target,) = [line for line in text.splitlines() if "behaviour rate, target" in line]
    assert "100.0%" in target
    assert "50.0%" in target
    assert "unlabelled" in text
    (unlabelled,) = [line for line in text.splitlines() if "│ unlabelled" in line]
    assert [cell.strip() for cell in unlabelled.split("│")[2:4]] == ["0", "2"]
    assert "against the truth: a 1.000, 1.000, 1.000; b 1.000, 0.667, 0.800" in " ".join(text.split())
    assert "+0.0000 [-0.1000, 0.1000]" in text


def test_one_detector_that_labels_all_needs_no_table_of_its_own(results: dict[str, Any]) -> None:
    del results["detectors"]["b"]
    for model in ("base", "edited"):
        del results[model]["by_budget"]
    text = shown({**results, "agreement": [], "cross_entropy": {}})
    for title in ("by detector", "agreement on", "rate by token budget", "cross-entropy"):
        assert title not in text


def test_a_rate_of_no_labels_is_a_dash(results: dict[str, Any]) -> None:
    lines = shown(results).splitlines()
    (neutral,) = [line for line in lines if "neutral, base" in line and "–" in line]
    assert neutral.rstrip(" │").endswith("–")


def test_the_page_shows_it_all_and_needs_no_network(results: dict[str, Any]) -> None:
    page = evaluation_page(results)
    for words in ("by detector", "rates at smaller token budgets", "by category, target prompts", "jam"):
        assert words in page
    assert "<script src=" not in page
    del results["base"]["by_budget"]
    results["base"]["by_category"] = results["edited"]["by_category"] = {}
    assert "by category" not in evaluation_page(results)


def bars(figure: Any) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Trace → x → (value, error upwards, error downwards)."""
    return {
        str(trace.name): {
            str(x): (y, above, below)
            for x, y, above, below in zip(trace.x, trace.y, trace.error_y.array, trace.error_y.arrayminus, strict=True)
        }
        for trace in figure.data
    }


def test_figures_show_each_model_its_own_rates_with_their_intervals(results: dict[str, Any]) -> None:
    rates = {model: results[model]["behaviour_rate"] for model in ("base", "edited")}
    wanted = {
        model: (rate["value"], rate["high"] - rate["value"], rate["value"] - rate["low"])
        for model, rate in rates.items()
    }
    assert wanted["base"] != wanted["edited"]
    found = bars(_by_detector(results))
    assert {model: found[model]["target<br>a"] for model in wanted} == wanted
    assert "neutral<br>b" not in found["base"]  # nothing was labelled
    budgets = bars(_by_budget(results))
    assert {model: budgets[f"{model}, target"]["8"] for model in wanted} == wanted
    assert budgets["base, neutral"]["8"][0] == results["base"]["spill_rate"]["value"] == 0
    assert budgets["base, target"]["2"][0] == 0
    assert list(budgets["base, target"]) == ["2", "8"]
    by_category = bars(_by_category(results, "target"))
    assert {name: one[0] for name, one in by_category["base"].items()} == {"jam": 1, "tea": 1}
    assert {name: one[0] for name, one in by_category["edited"].items()} == {"jam": 1, "tea": 0}
    assert _by_category(results, "neutral") is None


def test_the_summary_names_detector_budget_rates_and_agreement(results: dict[str, Any]) -> None:
    pair = {"detectors": ["a", "b"], "kappa": 0.0}  # no better than chance is a finding, too
    lines = summary({**results, "agreement": [pair, {**pair, "kappa": None}]})
    assert "at most 8 tokens; behaviour labelled by a." in lines[0]
    assert lines[2].endswith(rate_text(results["edited"]["behaviour_rate"]))
    assert lines[-1] == "Agreement: a and b κ 0.00."
    assert not [line for line in summary({**results, "agreement": []}) if "Agreement" in line]


def test_what_a_model_said_is_no_markup(results: dict[str, Any]) -> None:
    page = evaluation_page({**results, "model": "<b>m</b>"})
    assert "<h1>refusal of &lt;b&gt;m&lt;/b&gt;, test split</h1>" in page
