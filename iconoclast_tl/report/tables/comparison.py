"""Tables of a comparison of runs, and the words and rows that its page shares with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from iconoclast_tl.run_comparison.arms import Arm
from iconoclast_tl.run_comparison.compare import ArmContrast, Comparison
from iconoclast_tl.statistics.effects import Effect
from iconoclast_tl.statistics.means import Spread

ARM_COLUMNS = ("arm", "runs", "prompts", "behaviour", "spill", "KL, nats")
COLUMNS = (
    *ARM_COLUMNS, "Δ behaviour", "Δ spill", "Δ KL, nats", "p (Holm)", "d", "resolves", "verdict",
)  # fmt: skip
TESTS = {"mcnemar": "exact McNemar", "sign flips, exact": "all sign flips", "sign flips, random": "random sign flips"}
MOST = 8
"""How many differing settings of an arm are named; the rest is counted."""


def comparison_tables(found: Comparison) -> list[Table]:
    """The arms; how they differ from the reference, with the verdict and its rule; the runs by themselves."""
    return [_arms_table(found), _differences_table(found), _runs_table(found)]


def _arms_table(found: Comparison) -> Table:
    table = _table("arms, mean ± sd over runs (seeds, models)", ARM_COLUMNS, ("arm",))
    for row in arm_rows(found):
        table.add_row(*map(escape, row[: len(ARM_COLUMNS)]))
    return table


def _differences_table(found: Comparison) -> Table:
    table = _table(
        heading(found), ("", "Δ behaviour", "p (Holm)", "d", "Δ spill", "Δ KL, nats", "verdict"), ("", "verdict")
    )
    for one in found.contrasts:
        spill, kl = one.spill, one.kl.difference
        table.add_row(
            one.candidate,
            _points_interval(one.behaviour.value, one.behaviour.low, one.behaviour.high, "\n"),
            f"{one.p_holm:.2g}",
            effect_text(one.behaviour.d),
            _points_interval(spill.value, spill.low, spill.high, "\n"),
            interval_text(kl.value, kl.low, kl.high, "{:+.4f}", "\n"),
            one.verdict.word,
        )
    table.caption = escape("\n".join([*verdicts(found), *captions(found)]))
    return table


def _runs_table(found: Comparison) -> Table:
    table = _table(
        "runs, the base against the edited model", ("", "run", "behaviour", "p", "d", "spill", "KL, nats"), ("", "run")
    )
    for arm in found.arms:
        for run in arm.runs:
            one = found.summaries[run.path]
            change = one.behaviour.difference
            table.add_row(
                arm.name,
                escape(f"{run.path}\nseed {run.seed}, {run.model}"),
                f"{one.behaviour.base:.1%} → {one.behaviour.edited:.1%}\nΔ "
                + _points_interval(change.value, change.low, change.high),
                f"{one.behaviour.test.p:.2g}",
                effect_text(one.behaviour.d),
                f"{one.spill.base:.1%} → {one.spill.edited:.1%}",
                interval_text(one.kl.value, one.kl.low, one.kl.high, "{:.4f}", "\n"),
            )
    table.caption = "95% intervals: Newcombe's for paired rates, BCa bootstrap for KL; p: exact McNemar"
    return table


def _table(title: str, columns: Sequence[str], left: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    for name in columns:
        table.add_column(name, justify="left" if name in left else "right", overflow="fold")
    return table


def verdicts(found: Comparison) -> list[str]:
    """A line an arm: its verdict, with the reason."""
    return [f"{one.candidate}: {one.verdict}" for one in found.contrasts]


def captions(found: Comparison) -> list[str]:
    """The rule, what tells arms apart, what the numbers are, and what the prompts resolve."""
    terms, less = found.terms, "edited − base" if found.against_base else "less the reference"
    tests = ", ".join(dict.fromkeys(TESTS.get(one.behaviour.test, one.behaviour.test) for one in found.contrasts))
    lines = [
        f"rule: {found.rule_in_words}",
        *(f"{arm.name}: {differs(arm)}" for arm in found.arms[1:]),
        "intervals and tests are over prompts, a prompt's runs averaged: they "
        "generalise to other prompts, not to other seeds; "
        f"Δ: {less}, with its 95% interval; p of the behaviour by {tests}",
        f"greedy responses of at most {terms['budget']} tokens; {terms['behaviour']} by {terms['detector']['name']}; "
        f"KL over {terms['kl_tokens']} tokens",
    ]
    left_out = {one.candidate: one.behaviour.left_out + one.spill.left_out for one in found.contrasts}
    if any(left_out.values()):
        said = ", ".join(f"{name} {n}" for name, n in left_out.items())
        lines.append(f"left out, for want of a label on both sides: {said}")
    return [*lines, *(_resolution_line(one) for one in found.contrasts)]


def _resolution_line(one: ArmContrast) -> str:
    asked = one.resolution
    return (
        f"{one.candidate}: a difference of {asked.difference:.1%} takes {asked.n} prompts; {one.behaviour.n} resolve "
        f"{_resolved(one)} (power 80%, exact McNemar, a run of each prompt, discordance {asked.discordance:.0%}, the "
        "upper end of its interval)"
    )


def differs(arm: Arm) -> str:
    """The settings in which an arm differs from the reference."""
    if not arm.differs:
        return "has the same recorded settings"
    named = [f"{key} {_value(here)} (reference {_value(there)})" for key, (there, here) in arm.differs.items()]
    more = f", and {len(named) - MOST} more" if len(named) > MOST else ""
    return f"differs in {', '.join(named[:MOST])}{more}"


def _value(value: Any) -> str:
    return "unset" if value is None else str(value)


def heading(found: Comparison) -> str:
    """What is compared, to what end."""
    what = "base against edited" if found.against_base else f"arms against {found.arms[0].name}"
    return f"{what}, to {found.terms['goal']} {found.terms['behaviour']}"


def arm_rows(found: Comparison) -> list[list[str]]:
    """Base and edited where there is one arm, else the arms, the reference first."""
    if found.against_base:
        (arm,), (one,) = found.arms, found.contrasts
        return [_row(found, arm, "base", None), _row(found, arm, "edited", one)]
    contrasts: dict[str, ArmContrast] = {one.candidate: one for one in found.contrasts}
    return [_row(found, arm, "edited", contrasts.get(arm.name)) for arm in found.arms]


def _row(found: Comparison, arm: Arm, side: str, one: ArmContrast | None) -> list[str]:
    kl = f"{0:.4f}" if side == "base" else _spread(found.spread_of(arm, "kl"), "{:.4f}")
    rates = [_spread(found.spread_of(arm, name, side), "{:.1%}") for name in ("behaviour", "spill")]
    name = side if found.against_base else arm.name
    prompts = {prompt for run in arm.runs for prompt in run.target}
    row = [name, str(len(arm.runs)), str(one.behaviour.n if one else len(prompts)), *rates, kl]
    if one is None:
        return [*row, *[""] * 6, "reference"]
    behaviour, spill, kl_difference = one.behaviour, one.spill, one.kl.difference
    return [
        *row,
        interval_text(behaviour.value, behaviour.low, behaviour.high, "{:+.1%}"),
        interval_text(spill.value, spill.low, spill.high, "{:+.1%}"),
        interval_text(kl_difference.value, kl_difference.low, kl_difference.high, "{:+.4f}"),
        f"{one.p_holm:.2g}",
        effect_text(behaviour.d),
        _resolved(one),
        one.verdict.word,
    ]


def _spread(value: Spread, form: str) -> str:
    return form.format(value.value) + ("" if value.sd is None else f" ± {form.format(value.sd)}")


def interval_text(value: float, low: float | None, high: float | None, form: str, between: str = " ") -> str:
    """A number with the ends of its interval, where it has one."""
    if low is None or high is None:
        return form.format(value)
    return f"{form.format(value)}{between}[{form.format(low)}, {form.format(high)}]"


def _points_interval(value: float, low: float | None, high: float | None, between: str = " ") -> str:
    """In percent, with the sign % said once."""
    if low is None or high is None:
        return f"{value:+.1%}"
    return f"{value:+.1%}{between}[{100 * low:+.1f}, {100 * high:+.1f}]"


def effect_text(effect: Effect) -> str:
    """An effect size."""
    return f"{effect.value:+.2f}".replace("inf", "∞")


def _resolved(one: ArmContrast) -> str:
    return "nothing" if one.resolution.smallest is None else f"{one.resolution.smallest:.1%}"
