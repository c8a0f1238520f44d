"""Tables of an attribution study: the parts that contribute most, and how far methods agree."""

from __future__ import annotations

from rich.table import Table

from iconoclast_tl.attribution.parts import Part
from iconoclast_tl.attribution.result import Attribution
from iconoclast_tl.attribution.study import Study


def attribution_table(study: Study, top: int) -> Table:
    """The parts of largest value by `study.best`, with its intervals and every other method's values."""
    table = Table(title=f"attribution of {study.score}, under {study.edit}", title_justify="left")
    others = [one for one in study.found if one is not study.best]
    table.add_column("part", no_wrap=True)
    table.add_column(f"{study.best.method}\n95% interval", justify="right", no_wrap=True)
    for one in others:
        table.add_column(one.method.replace("-", "-\n"), justify="right")
    for part in study.best.top(top):
        table.add_row(str(part), cell(study.best, part), *(cell(one, part, interval=False) for one in others))
    target, neutral = float(study.target_scores.mean()), float(study.neutral_scores.mean())
    table.caption = (
        f"score {target:.3g} on target prompts, {neutral:.3g} on matched neutral ones; "
        f"{len(study.target_scores)} prompts; ranked by {study.best.method}"
    )
    return table


def agreement_table(study: Study) -> Table:
    """How far every two methods agree."""
    table = Table(title="agreement of methods", title_justify="left")
    for column in ("", "", "rank correlation", f"first {study.agreements[0].k if study.agreements else 0} in common"):
        table.add_column(column, justify="right" if column else "left")
    for one in study.agreements:
        (rho, low, high), (share, below, above) = one.rank_correlation, one.overlap
        table.add_row(
            one.one, one.other, f"{rho:.2f} [{low:.2f}, {high:.2f}]", f"{share:.0%} [{below:.0%}, {above:.0%}]"
        )
    if study.overlooked is not None:
        names = ", ".join(f"{one.part} ({one.effect:.0%} by {one.method})" for one in study.overlooked)
        table.caption = f"overlooked by direct attribution: {names or 'none'}"
    return table


def cell(found: Attribution, part: Part, interval: bool = True) -> str:
    """The mean of a part, with its 95% interval; empty where the method has no such part."""
    if part not in found.parts:
        return ""
    place = found.parts.index(part)
    low, high = found.intervals[place].tolist()
    return f"{float(found.means[place]):.2f}" + (f" [{low:.2f}, {high:.2f}]" if interval else "")
