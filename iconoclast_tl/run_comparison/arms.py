"""Arms of a comparison: runs that differ in nothing but seed, model, prompts and how they were computed.

Every run of one arm is paired with the run of another that answered the same test prompts with the same weights, of
the same seed where there are several.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.run_comparison.runs import ComparedRun, differences

EDIT = "edit"
"""What was evaluated, where settings do not say it, among a run's settings."""


@dataclass(frozen=True)
class Arm:
    """Runs of the same settings."""

    name: str
    """A for the reference, then B, C, …"""
    runs: tuple[ComparedRun, ...]
    differs: Mapping[str, tuple[Any, Any]]
    """Setting → its value in the reference and here."""


@dataclass(frozen=True)
class Pair:
    """Two runs that answered the same prompts with the same weights."""

    reference: ComparedRun
    candidate: ComparedRun


def arms(runs: Sequence[ComparedRun], against: Sequence[ComparedRun]) -> list[Arm]:
    """The arms, the reference first: `against` where given, else that of the first run; one arm where all are alike.

    Two runs that are alike to the seed and the model are two arms: the same before and after a change of code. With
    `against`, runs of one arm may hold different edits (adapters, one for each seed), else these tell arms apart.
    `UserError` where `against` are runs of different settings, and for an arm with a run twice or with other prompts
    of the same model.
    """
    if against:
        reference, *more = _grouped(against, whatever_edit=True)
        if more:
            got = _described(differences(reference[0].settings, more[0][0].settings))
            raise UserError("the runs of --against have different settings", got=got, want="one arm")
        groups = [reference, *_grouped(runs, whatever_edit=True)]
    elif len(runs) == 2 and runs[0].identity == runs[1].identity:
        groups = [[runs[0]], [runs[1]]]
    else:
        groups = _grouped(runs)
    for group in groups:
        _require_same_source(group)
        _require_no_repetition(group)
    return _named(groups)


def pairs(reference: Arm, candidate: Arm) -> list[Pair]:
    """Every run of both arms with its partner; `UserError` that names one without, and what is different of it."""
    left, right = _by_partners(reference.runs), _by_partners(candidate.runs)
    found: list[Pair] = []
    for key in dict.fromkeys([*right, *left]):
        ours, theirs = list(right[key]), list(left[key])
        for run in tuple(ours):
            same_seed = [other for other in theirs if other.seed == run.seed]
            if same_seed:
                found.append(Pair(same_seed[0], run))
                theirs.remove(same_seed[0])
                ours.remove(run)
        if len(ours) == len(theirs) == 1:
            found.append(Pair(theirs.pop(), ours.pop()))
        if ours:
            raise _without_partner(ours[0], candidate, reference)
        if theirs:
            raise _without_partner(theirs[0], reference, candidate)
    for pair in found:
        _require_same_prompts(pair)
    return found


def _grouped(runs: Sequence[ComparedRun], whatever_edit: bool = False) -> list[list[ComparedRun]]:
    """Runs by their settings, in the order in which they are named."""
    groups: list[list[ComparedRun]] = []
    ignored = {EDIT} if whatever_edit else set()
    for run in runs:
        same = [group for group in groups if differences(group[0].settings, run.settings).keys() <= ignored]
        if same:
            same[0].append(run)
        else:
            groups.append([run])
    return groups


def _named(groups: Sequence[Sequence[ComparedRun]]) -> list[Arm]:
    named, reference = [], groups[0][0]
    for place, group in enumerate(groups):
        different = differences(reference.settings, group[0].settings)
        if place and not different:  # no setting tells them apart: whatever else is known to differ
            different = differences(reference.circumstances, group[0].circumstances)
        named.append(Arm(_letters(place), tuple(group), different))
    return named


def _letters(place: int) -> str:
    return chr(ord("A") + place) if place < 26 else f"arm {place + 1}"


def _by_partners(runs: Sequence[ComparedRun]) -> dict[tuple[Any, ...], list[ComparedRun]]:
    found: dict[tuple[Any, ...], list[ComparedRun]] = defaultdict(list)
    for run in runs:
        found[run.partners].append(run)
    return found


def _require_same_source(group: Sequence[ComparedRun]) -> None:
    """Of one model, test prompts may be another split of the same sources, by seed, and nothing else."""
    first: dict[str, ComparedRun] = {}
    for run in group:
        other = first.setdefault(run.fingerprint, run)
        changed = [name.replace("_", " ") for name in run.prompts if run.prompts[name] != other.prompts[name]]
        sources = {
            key: values
            for key, values in differences(other.circumstances, run.circumstances).items()
            if key.startswith("prompts.")
        }
        if changed and (sources or run.seed == other.seed):
            raise UserError(
                f"{other.path} and {run.path} have the same settings and were evaluated with different prompts",
                got=f"different {' and '.join(changed)} prompts{'; ' if sources else ''}{_described(sources)}",
                mend="evaluate them on the same test prompts",
            )


def _require_no_repetition(group: Sequence[ComparedRun]) -> None:
    seen: dict[tuple[Any, ...], ComparedRun] = {}
    for run in group:
        if run.identity in seen:
            raise UserError(
                f"{seen[run.identity].path} and {run.path} have the same settings, seed, model and prompts",
                want="each once in an arm",
                mend="leave one out, or name those of the reference with --against",
            )
        seen[run.identity] = run


def _without_partner(run: ComparedRun, own: Arm, other: Arm) -> UserError:
    """Why: the nearest run of the other arm, and what is different there."""
    same_model = [one for one in other.runs if one.fingerprint == run.fingerprint]
    nearest = max(same_model or other.runs, key=lambda one: (one.seed == run.seed, _n_shared(one, run)))
    reasons = []
    if not same_model:
        reasons.append(f"model: {nearest.model} ({nearest.fingerprint[:12]}) and {run.model} ({run.fingerprint[:12]})")
    for name in run.prompts:
        if nearest.prompts[name] != run.prompts[name]:
            digests = f"{nearest.prompts[name][:12]} and {run.prompts[name][:12]}"
            reasons.append(f"{name.replace('_', ' ')} prompts: {digests}")
    if nearest.seed != run.seed:
        reasons.append(f"seed: {nearest.seed} and {run.seed}")
    return UserError(
        f"{run.path} of arm {own.name} has no partner in arm {other.name}",
        got=f"nearest {nearest.path}: {'; '.join(reasons) or 'paired with another run'}",
        want="for every run one of the same model, test prompts and seed",
    )


def _n_shared(one: ComparedRun, other: ComparedRun) -> int:
    return sum(one.prompts[name] == other.prompts[name] for name in other.prompts)


def _require_same_prompts(pair: Pair) -> None:
    """The same digests, and yet the model may have been asked other tokens, or a file may be cut off."""
    one, other = pair.reference, pair.candidate
    for name in ("prompts.raw_prompts", "tokens"):
        # Tokens of train and val prompts are among them: only where all prompts are the same they must be.
        same_sources = one.circumstances.get("digests") == other.circumstances.get("digests")
        if one.circumstances.get(name) != other.circumstances.get(name) and (name != "tokens" or same_sources):
            raise UserError(
                f"{one.path} and {other.path} put the same prompts to the model as different tokens",
                got=f"{name}: {_short(one.circumstances.get(name))} and {_short(other.circumstances.get(name))}",
                want="the same chat template and tokenizer",
            )
    for name, ours, theirs in (("target", one.target, other.target), ("neutral", one.neutral, other.neutral)):
        if ours.keys() != theirs.keys():
            raise UserError(
                f"{one.path} and {other.path} answered different prompts",
                got=f"{name}: {len(ours.keys() ^ theirs.keys())} prompts stand in one responses.jsonl alone",
                mend="evaluate the run with the incomplete file again",
            )


def _short(value: Any) -> Any:
    return value[:12] if isinstance(value, str) else value


def _described(different: Mapping[str, tuple[Any, Any]]) -> str:
    return "; ".join(f"{key}: {one!r} and {other!r}" for key, (one, other) in different.items())


def as_one(arm: Arm) -> list[Arm]:
    """One arm as two, the base and the edited model of its own runs."""
    return [replace(arm, name="base"), replace(arm, name="edited")]
