"""The contrast set: target and neutral prompts, each split into train, val and test.

`train` estimates directions, `val` is what a search may look at, `test` is reported and never searched on. One source
is split 60/20/20 by seed; other sources can be named for val and test. A text that stands in two splits is an error,
under whatever system messages, since a held-out number would then not be held out.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.stage_config import StageConfig
from iconoclast_tl.prompts.prompt import Prompt, digest
from iconoclast_tl.prompts.sources import load_prompts

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
SIDES = ("target", "neutral")
SHARES: dict[SplitName, int] = {"train": 60, "val": 20, "test": 20}


class PromptConfig(StageConfig):
    """Which prompts, and how they are put to the model."""

    target: str | None = None
    """Prompts that call up the behaviour; unset: the organism's own."""
    neutral: str | None = None
    """Prompts that do not; unset: the organism's own."""
    target_val: str | None = None
    """A separate source for the target prompts that the search sees."""
    target_test: str | None = None
    """A separate source for the target prompts that are reported."""
    neutral_val: str | None = None
    """A separate source for the neutral prompts that the search sees."""
    neutral_test: str | None = None
    """A separate source for the neutral prompts that are reported."""
    borderline: str | None = None
    """Neutral prompts that look like targets; reported only."""
    category: str | None = None
    """The column that names each prompt's category; rates are then reported per category too."""
    system: str | None = None
    """A system message for every prompt that has none of its own."""
    raw_prompts: bool = False
    """Put the prompt to the model as it is, without a chat template (for base models)."""


@dataclass(frozen=True)
class Split:
    """The target and neutral prompts of one split; of `test` also borderline ones: neutral, but like targets."""

    target: tuple[Prompt, ...]
    neutral: tuple[Prompt, ...]
    borderline: tuple[Prompt, ...] = ()

    def __post_init__(self) -> None:
        """Take texts for prompts."""
        for name in ("target", "neutral", "borderline"):
            object.__setattr__(self, name, tuple(_as_prompts(getattr(self, name))))

    def __len__(self) -> int:
        """How many prompts there are together."""
        return len(self.target) + len(self.neutral) + len(self.borderline)


@dataclass(frozen=True, kw_only=True)
class ContrastSet:
    """Prompts in three disjoint splits: `data.train.target`, `data.val.neutral`, `data.test.borderline`."""

    train: Split
    val: Split
    test: Split
    dropped: int = 0
    """How many duplicates were left out: repeats within a source, and prompts on both sides."""

    def __post_init__(self) -> None:
        """Refuse a text that stands in two splits."""
        _require_disjoint(self)

    @classmethod
    def split(
        cls,
        target: Sequence[str | Prompt],
        neutral: Sequence[str | Prompt],
        *,
        seed: int = 0,
        borderline: Sequence[str | Prompt] = (),
    ) -> ContrastSet:
        """Cut both sides 60/20/20 into train, val and test by seed, without repeats and what stands on both sides.

        borderline: neutral prompts that look like targets; they join `test`. Raises `UserError` for an empty or too
        short side, and for a borderline prompt that another split has.
        """
        named = {"target": target, "neutral": neutral}
        for name, prompts in named.items():
            if isinstance(prompts, str | Prompt):
                raise UserError(f"{name} prompts are one text", want="a list", mend="itl.load_prompts reads a source")
            if not prompts:
                raise UserError(f"there are no {name} prompts", want="a list with at least three different texts")
        sides: dict[str, dict[SplitName, list[Prompt]]] = {
            name: {"train": _as_prompts(prompts)} for name, prompts in named.items()
        }
        return _assembled(sides, _as_prompts(borderline), seed)

    def __repr__(self) -> str:
        """Such as `ContrastSet(train 60+60, val 20+20, test 20+20)`."""
        counts = [f"{name} {len(self.of(name).target)}+{len(self.of(name).neutral)}" for name in SPLITS]
        more = f", borderline {len(self.test.borderline)}" if self.test.borderline else ""
        return f"ContrastSet({', '.join(counts)}{more})"

    def of(self, split: str) -> Split:
        """The prompts of a split by its name; `UserError` where there is no such split."""
        if split not in SPLITS:
            raise UserError(f"there is no split {split}", want=f"one of {', '.join(SPLITS)}")
        found: Split = getattr(self, split)
        return found

    def counts(self) -> dict[str, dict[str, int]]:
        """`{split: {target: n, neutral: n}}`."""
        return {s: {"target": len(self.of(s).target), "neutral": len(self.of(s).neutral)} for s in SPLITS}

    def digests(self) -> dict[str, str]:
        """The digest of every part, by which a run folder knows its prompts again."""
        parts = {f"{side}_{split}": getattr(self.of(split), side) for side in SIDES for split in SPLITS}
        return {name: digest(prompts) for name, prompts in {**parts, "borderline": self.test.borderline}.items()}


def require_contrast_set(data: object, filled: Sequence[SplitName] = ("train", "val")) -> None:
    """Raise `UserError` for what is no contrast set, or lacks prompts in one of the splits that must be `filled`."""
    if not isinstance(data, ContrastSet):
        raise UserError(
            "the prompts are no contrast set",
            got=type(data).__name__,
            want="itl.ContrastSet.split(target, neutral), or itl.organism_prompts()",
        )
    for split in filled:
        for side in SIDES:
            if not getattr(data.of(split), side):
                raise UserError(f"there are no {side} prompts in this split", got=split, want="at least one")


def load_contrast_set(config: PromptConfig, seed: int) -> ContrastSet:
    """Load, de-duplicate and split the sources of `config`.

    Repeats within a source are dropped, and a prompt that stands on both sides is dropped from both. Raises `UserError`
    for a missing source, for too few prompts, and for a prompt in two splits.
    """
    if config.target is None or config.neutral is None:
        missing = "target" if config.target is None else "neutral"
        raise UserError(f"no {missing} prompts are named", want="a prompt source", mend=f"pass --{missing} SOURCE")
    sides: dict[str, dict[SplitName, list[Prompt]]] = {
        "target": _load_side((config.target, config.target_val, config.target_test), config),
        "neutral": _load_side((config.neutral, config.neutral_val, config.neutral_test), config),
    }
    borderline = load_prompts(config.borderline, config.category) if config.borderline else []
    return _assembled(sides, borderline, seed)


def _as_prompts(prompts: Sequence[str | Prompt]) -> list[Prompt]:
    return [prompt if isinstance(prompt, Prompt) else Prompt(prompt) for prompt in prompts]


def _assembled(sides: dict[str, dict[SplitName, list[Prompt]]], borderline: list[Prompt], seed: int) -> ContrastSet:
    both = _keys(sides["target"]) & _keys(sides["neutral"])
    cleaned = {name: _without_repeats(side, both) for name, side in sides.items()}
    single = _unique(borderline)
    cut = {name: _split_side(name, side, seed) for name, side in cleaned.items()}
    dropped = _count(sides) - _count(cleaned) + len(borderline) - len(single)
    splits = {split: Split(cut["target"][split], cut["neutral"][split]) for split in SPLITS}
    splits["test"] = replace(splits["test"], borderline=tuple(single))
    return ContrastSet(**splits, dropped=dropped)


def split_prompts(prompts: Sequence[Prompt], shares: dict[SplitName, int], seed: int) -> dict[SplitName, list[Prompt]]:
    """Shuffle the texts by `seed` and cut in proportion to `shares`, every share at least one; order-independent.

    Prompts of one text, under different system messages, stay together. All are sorted first, so that the split
    depends on which prompts there are and not on the file's order.
    """
    ordered = sorted(prompts, key=lambda prompt: (prompt.text, prompt.system or ""))
    shuffled = [list(same) for _, same in groupby(ordered, key=lambda prompt: prompt.text)]
    random.Random(seed).shuffle(shuffled)
    total, result, start, cumulative = sum(shares.values()), {}, 0, 0
    for index, (split, share) in enumerate(shares.items()):
        cumulative += share
        left = len(shares) - index - 1
        end = min(max(round(len(shuffled) * cumulative / total), start + 1), len(shuffled) - left)
        result[split] = [prompt for same in shuffled[start:end] for prompt in same]
        start = end
    return result


def _load_side(specs: tuple[str | None, str | None, str | None], config: PromptConfig) -> dict[SplitName, list[Prompt]]:
    named = zip(SPLITS, specs, strict=True)
    return {split: load_prompts(spec, config.category) for split, spec in named if spec is not None}


def _key(prompt: Prompt) -> tuple[str, str | None]:
    return (prompt.text, prompt.system)


def _keys(side: dict[SplitName, list[Prompt]]) -> set[tuple[str, str | None]]:
    return {_key(prompt) for prompts in side.values() for prompt in prompts}


def _unique(prompts: Sequence[Prompt]) -> list[Prompt]:
    return list({_key(prompt): prompt for prompt in prompts}.values())


def _count(sides: Mapping[str, Mapping[SplitName, list[Prompt]]]) -> int:
    return sum(len(prompts) for side in sides.values() for prompts in side.values())


def _without_repeats(
    side: dict[SplitName, list[Prompt]], both: set[tuple[str, str | None]]
) -> dict[SplitName, list[Prompt]]:
    """Drop repeats within each source (never across named splits: that is `_require_disjoint`'s error)."""
    return {
        split: [prompt for prompt in _unique(prompts) if _key(prompt) not in both] for split, prompts in side.items()
    }


def _split_side(name: str, side: dict[SplitName, list[Prompt]], seed: int) -> dict[SplitName, tuple[Prompt, ...]]:
    """Cut the first source into the splits that have no source of their own."""
    shares = {split: SHARES[split] for split in SPLITS if split == "train" or split not in side}
    texts = {prompt.text for prompt in side["train"]}
    if len(texts) < max(len(shares), 2):
        raise UserError(
            f"too few {name} prompts are left after de-duplication",
            got=len(texts),
            want=f"at least {max(len(shares), 2)} different texts (they are cut into {', '.join(shares)})",
            mend="pass more prompts, none of which stands on both sides",
        )
    parts = {**side, **split_prompts(side["train"], shares, seed)}
    for split, prompts in parts.items():
        if not prompts:
            raise UserError(f"no {name} prompts are left in {split} after de-duplication", want="at least one")
    return {split: tuple(parts[split]) for split in SPLITS}


def _require_disjoint(contrast: ContrastSet) -> None:
    """No text in two splits. Both sides of one split may share it: the system message can be what sets them apart."""
    parts: list[tuple[str, str, Sequence[Prompt]]] = [
        (split, f"{side} {split}", getattr(contrast.of(split), side)) for side in SIDES for split in SPLITS
    ]
    seen: dict[str, tuple[str, str]] = {}
    for split, place, prompts in [*parts, ("borderline", "borderline", contrast.test.borderline)]:
        for prompt in prompts:
            there, where = seen.setdefault(prompt.text, (split, place))
            if there != split:
                raise UserError(
                    f"a prompt stands in two splits, {where} and {place}",
                    got=repr(prompt.text[:60]),
                    want="disjoint splits",
                    mend="remove it from one of the sources",
                )
