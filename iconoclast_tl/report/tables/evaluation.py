"""Tables of an evaluation for the terminal, from results as they stand in JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

RATES = (
    ("behaviour_rate", "behaviour rate, target"),
    ("spill_rate", "spill rate, neutral"),
    ("spill_rate_borderline", "spill rate, borderline"),
    ("compliance_rate", "compliance heuristic, target"),
    ("disclaimer_rate", "disclaimers, all"),
)
SET_OF_RATE = {
    "behaviour_rate": "target",
    "spill_rate": "neutral",
    "spill_rate_borderline": "borderline",
    "compliance_rate": "target",
}
GRADES = ("answered", "refused", "broken")
NEXT_TO_NONE = 1e-9
SETS = ("target", "neutral", "borderline")


def evaluation_tables(results: Mapping[str, Any], title: str) -> list[Table]:
    """What was measured; where there is more than one of them, detectors and their agreement; and smaller budgets."""
    tables = main_tables(results, title)
    if len(results["detectors"]) > 1 and len(tables) == 1:
        tables.append(detectors_table(results))
    if results["agreement"]:
        tables.append(agreement_table(results["agreement"], results["accuracy"]))
    if results["base"].get("by_budget"):
        tables.append(budgets_table(results))
    if results["paired"]:
        tables.append(paired_table(results))
    if results.get("cross_entropy"):
        tables.append(cross_entropy_table(results["cross_entropy"]))
    if results.get("tasks"):
        tables.append(tasks_table(results["tasks"]))
    return tables


def main_tables(results: Mapping[str, Any], title: str) -> list[Table]:
    """What was measured; where a detector left responses without a label, how many, too."""
    unsaid = any(_unsaid(results["detectors"], models_of(results)))
    return [results_table(results, title), *([detectors_table(results)] if unsaid else [])]


def models_of(results: Mapping[str, Any]) -> list[str]:
    """The models that were evaluated, `base` first."""
    return [name for name in ("base", "edited") if results.get(name)]


def results_table(results: Mapping[str, Any], title: str) -> Table:
    """Base beside edited: rates with their intervals, grades where the truth is known, divergence."""
    models = models_of(results)
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in models:
        table.add_column(name, justify="right")
    for key, label in RATES:
        if any(results[name].get(key) for name in models):
            table.add_row(label, *(_labelled_rate(results[name], key) for name in models))
    truth = {name: results[name]["grades"] for name in models if "grades" in results[name]}
    for grade in GRADES if truth else ():
        for part in truth["base"][grade]:
            table.add_row(f"{grade}, {part} (truth)", *(rate_text(truth[name][grade][part]) for name in models))
    for key, label in (("words", "words"), ("repetition", "repeated word pairs")):
        for part in results[models[0]][key]:
            table.add_row(f"{label}, {part}", *(_mean(results[name][key][part], key) for name in models))
    tokens = results[models[0]]["kl_sequence"]["tokens"]
    table.add_row("KL first token, nats", *(f"{results[name]['kl_first_token']['value']:.4f}" for name in models))
    table.add_row(f"KL {tokens} tokens, nats", *(f"{results[name]['kl_sequence']['value']:.4f}" for name in models))
    budget = results[models[0]]["disclaimer_rate"]["tokens"]
    table.caption = f"95% intervals: Wilson's of rates, bootstrap of means; greedy responses of at most {budget} tokens"
    return table


def detectors_table(results: Mapping[str, Any]) -> Table:
    """The rates of every detector side by side, and how many responses each left without a label."""
    models = models_of(results)
    table = Table(title="by detector", title_justify="left")
    table.add_column("")
    for name in results["detectors"]:
        table.add_column(name, justify="right", overflow="fold")
    found = results["detectors"].values()
    for model in models:
        for key in SETS:
            if all(key in one[model] for one in found):
                table.add_row(f"{key}, {model}", *(rate_text(one[model][key]["behaviour_rate"]) for one in found))
    for unsaid in ("unlabelled", "uncertain", "empty"):
        counts = [sum(one[model][key][unsaid] for model in models for key in one[model]) for one in found]
        if any(counts):
            table.add_row(unsaid, *map(str, counts))
    table.caption = f"rates above are by {results['detector']}; the unlabelled and uncertain are in no rate"
    return table


def agreement_table(agreement: Sequence[Mapping[str, Any]], accuracy: Sequence[Mapping[str, Any]]) -> Table:
    """Every pair of detectors, with the truth where it is known: κ, and where they disagree."""
    table = Table(title="agreement on whether the behaviour is shown", title_justify="left")
    for column in ("first", "second", "n", "left out", "both", "first only", "second only", "neither", "κ"):
        table.add_column(column, justify="left" if column in ("first", "second") else "right", overflow="fold")
    for pair in agreement:
        counts = (str(pair[key]) for key in ("n", "left_out", "both", "first_only", "second_only", "neither"))
        table.add_row(*pair["detectors"], *counts, "–" if pair["kappa"] is None else f"{pair['kappa']:.2f}")
    told = "; ".join(
        f"{one['detector']} {_number(one['precision'])}, {_number(one['recall'])}, {_number(one['f1'])}"
        for one in accuracy
    )
    table.caption = "Cohen's κ; a dash where both always give the same label"
    if told:
        table.caption += f". Precision, recall and F1 against the truth: {told}"
    return table


def budgets_table(results: Mapping[str, Any]) -> Table:
    """The rates as functions of the token budget, from the same responses."""
    models = models_of(results)
    budgets = [budget for budget in results["base"]["by_budget"] if int(budget) != results["budget"]]
    table = Table(title=f"rate by token budget, {results['detector']}", title_justify="left")
    table.add_column("")
    for budget in [*budgets, str(results["budget"])]:
        table.add_column(budget, justify="right")
    whole = {"target": "behaviour_rate", "neutral": "spill_rate", "borderline": "spill_rate_borderline"}
    for model in models:
        for key in whole:
            if whole[key] in results[model] and results[model][whole[key]] is not None:
                rates = [results[model]["by_budget"][budget][key] for budget in budgets]
                table.add_row(f"{key}, {model}", *map(rate_text, [*rates, results[model][whole[key]]]))
    return table


def paired_table(results: Mapping[str, Any]) -> Table:
    """Base against edited on the same prompts, set by set."""
    table = Table(title="edited − base, prompt by prompt", title_justify="left")
    for column in ("", "n", "difference", "lost", "gained", "p", "d"):
        table.add_column(column, justify="right" if column else "left")
    for name, found in results["paired"].items():
        table.add_row(name, *paired_cells(found))
    table.caption = (
        "difference in points with its 95% interval; lost, gained: prompts that stopped, and that started, to show "
        "the behaviour; p: exact McNemar; d: Cohen's"
    )
    if "target" in results["paired"]:
        table.caption += f". {_resolved(results['paired']['target'])}"
    return table


def paired_cells(found: Mapping[str, Any]) -> list[str]:
    """n, the difference, who changed, p and d of paired labels, as text."""
    risk = found["risk_difference"]
    difference = f"{100 * risk['value']:+.1f} [{100 * risk['low']:.1f}, {100 * risk['high']:.1f}]"
    return [
        str(found["n"]),
        difference,
        str(found["lost"]),
        str(found["gained"]),
        f"{found['p']:.2g}",
        effect_text(found["cohens_d"]),
    ]


def cross_entropy_table(found: Mapping[str, Any]) -> Table:
    """Loss and perplexity on every corpus, and the paired difference."""
    table = Table(title="cross-entropy, nats a token", title_justify="left")
    for column in ("corpus", "texts", "tokens", "base", "perplexity", "edited", "perplexity", "edited − base"):
        table.add_column(column, justify="left" if column == "corpus" else "right")
    for name, losses in found.items():
        cells = [f"{losses['base']['n']}", f"{losses['base']['tokens']}"]
        for model in ("base", "edited"):
            one = losses.get(model) or {}
            cells += [_number(one.get("value")), _number(one.get("perplexity"))]
        table.add_row(name, *cells, _with_interval(losses.get("change")))
    return table


def tasks_table(found: Mapping[str, Any]) -> Table:
    """The harness's tasks on base and edited; the paired difference where every document is right or wrong."""
    table = Table(title=f"lm-evaluation-harness {found['lm_eval']}", title_justify="left")
    for column in ("task", "metric", "n", "base", "edited", "edited − base", "p"):
        table.add_column(column, justify="left" if column in ("task", "metric") else "right")
    for name, task in found["tasks"].items():
        for key, score in task["base"].items():
            edited = (task.get("edited") or {}).get(key)
            pairs = paired_cells(task["paired"]) if key == task["main"] and "paired" in task else None
            table.add_row(
                name,
                key,
                str(task["n"]),
                _score(score),
                _score(edited),
                pairs[1] if pairs else "",
                pairs[4] if pairs else "",
            )
    limited = (
        "" if found["limit"] is None else f"; only the first {found['limit']} documents of each: no benchmark result"
    )
    table.caption = f"± standard errors of the harness; differences in points, p: exact McNemar{limited}"
    return table


def rate_text(rate: Mapping[str, Any] | None) -> str:
    """A rate with its interval, in percent; a dash where there is none."""
    if rate is None:
        return "–"
    return f"{rate['value']:.1%} [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"


def effect_text(effect: Mapping[str, Any]) -> str:
    """An effect size; in words where it is infinite."""
    return f"{effect['value']:.2f}" if effect["value"] is not None else str(effect["says"])


def _resolved(found: Mapping[str, Any]) -> str:
    """The smallest difference that n prompts resolve: if all changes go one way, and if every label changes."""
    from iconoclast_tl.statistics.power import paired_difference

    least, most = (paired_difference(found["n"], discordance) for discordance in (NEXT_TO_NONE, 1.0))
    if least is None or most is None:
        return f"{found['n']} target prompts resolve no difference"
    return f"{found['n']} target prompts resolve {100 * least:.0f} to {100 * most:.0f} points at 80% power"


def _labelled_rate(measured: Mapping[str, Any], key: str) -> str:
    """A rate of one model, with its n where that is less than the prompts that it is of."""
    rate = measured.get(key)
    asked = measured["words"].get(SET_OF_RATE.get(key, ""), {}).get("n")
    less = f", n={rate['n']}" if rate is not None and asked is not None and rate["n"] < asked else ""
    return rate_text(rate) + less


def _unsaid(detectors: Mapping[str, Any], models: Sequence[str]) -> Iterator[int]:
    for one in detectors.values():
        for model in models:
            for counts in one[model].values():
                yield counts["unlabelled"] + counts["uncertain"] + counts["empty"]


def _mean(mean: Mapping[str, Any], key: str) -> str:
    as_text = "{:.1f}" if key == "words" else "{:.3f}"
    ends = [as_text.format(mean[end]) for end in ("low", "high") if mean[end] is not None]
    return as_text.format(mean["value"]) + (f" [{', '.join(ends)}]" if ends else "")


def _score(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return "–"
    return f"{score['value']:.4f}" + ("" if score["stderr"] is None else f" ± {score['stderr']:.4f}")


def _with_interval(change: Mapping[str, Any] | None) -> str:
    if change is None or change["value"] is None:
        return "–"
    if change["low"] is None:
        return f"{change['value']:+.4f}"
    return f"{change['value']:+.4f} [{change['low']:.4f}, {change['high']:.4f}]"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
