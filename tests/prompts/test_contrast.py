"""Contrast sets: disjoint splits that depend on the prompts and the seed alone."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.organisms.folder import CONTRAST_FOLDER, shipped_folder
from iconoclast_tl.prompts.contrast import (
    SHARES,
    SPLITS,
    ContrastSet,
    PromptConfig,
    load_contrast_set,
    split_prompts,
)
from iconoclast_tl.prompts.prompt import Prompt

PROMPTS = [Prompt(f"p{i}") for i in range(100)]
Files = Any


@pytest.fixture
def write(tmp_path: Path) -> Files:
    """Write named lists of prompts and load them as a contrast set."""

    def _write(seed: int = 0, **sources: list[str]) -> ContrastSet:
        for name, texts in sources.items():
            (tmp_path / f"{name}.txt").write_text("\n".join(texts))
        return load_contrast_set(PromptConfig(**{name: str(tmp_path / f"{name}.txt") for name in sources}), seed)

    return _write


def texts(prefix: str, n: int) -> list[str]:
    return [f"{prefix}{i}" for i in range(n)]


@settings(max_examples=60, deadline=None)
@given(n=st.integers(3, 60), seed=st.integers(0, 5), data=st.data())
def test_splits_are_a_partition_that_the_order_does_not_change(n: int, seed: int, data: st.DataObject) -> None:
    prompts = PROMPTS[:n]
    parts = split_prompts(prompts, SHARES, seed)
    everything = [prompt for split in SPLITS for prompt in parts[split]]
    assert sorted(everything, key=lambda p: p.text) == sorted(prompts, key=lambda p: p.text)
    assert all(parts[split] for split in SPLITS)
    assert split_prompts(data.draw(st.permutations(prompts)), SHARES, seed) == parts


@settings(max_examples=30, deadline=None)
@given(n=st.integers(5, 100))
def test_shares_are_60_20_20_to_one_prompt(n: int) -> None:
    parts = split_prompts(PROMPTS[:n], SHARES, 0)
    for split, share in SHARES.items():
        assert abs(len(parts[split]) - n * share / 100) <= 1


def test_the_seed_decides() -> None:
    first, again, other = (split_prompts(PROMPTS, SHARES, seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert [p.text for p in first["train"]] != [p.text for p in PROMPTS[:60]]  # shuffled, not cut in file order


def test_one_source_a_side(write: Files) -> None:
    contrast = write(target=texts("t", 10), neutral=texts("n", 20))
    assert contrast.counts() == {
        "train": {"target": 6, "neutral": 12},
        "val": {"target": 2, "neutral": 4},
        "test": {"target": 2, "neutral": 4},
    }
    assert contrast.dropped == 0
    held = {p.text for p in contrast.val.target + contrast.test.target}
    assert not held & {p.text for p in contrast.train.target}


def test_a_files_order_changes_no_digest_and_a_seed_does(write: Files) -> None:
    lines = texts("t", 10)
    shuffled = random.Random(3).sample(lines, len(lines))
    first = write(target=lines, neutral=texts("n", 10))
    assert write(target=shuffled, neutral=texts("n", 10)).digests() == first.digests()
    assert write(seed=1, target=lines, neutral=texts("n", 10)).digests() != first.digests()


def test_named_sources_are_used_whole(write: Files) -> None:
    contrast = write(
        target=texts("t", 10),
        target_test=texts("x", 7),
        neutral=texts("n", 10),
        neutral_val=texts("v", 3),
        neutral_test=texts("w", 4),
        borderline=texts("b", 2),
    )
    assert contrast.counts() == {
        "train": {"target": 8, "neutral": 10},  # 60:20 of ten, and all
        "val": {"target": 2, "neutral": 3},
        "test": {"target": 7, "neutral": 4},
    }
    assert [p.text for p in contrast.test.target] == texts("x", 7)
    assert [p.text for p in contrast.test.borderline] == texts("b", 2)


def test_repeats_go_once_and_what_stands_on_both_sides_goes_twice(write: Files) -> None:
    contrast = write(target=[*texts("t", 6), "t0", "both"], neutral=[*texts("n", 6), "both"])
    assert contrast.dropped == 3
    kept = [p.text for split in SPLITS for side in ("target", "neutral") for p in getattr(contrast.of(split), side)]
    assert sorted(kept) == sorted([*texts("t", 6), *texts("n", 6)])


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({"target": texts("t", 9), "neutral": texts("t", 9)}, "too few target prompts are left after de-duplication"),
        ({"target": ["one"], "neutral": texts("n", 9)}, "too few target.*got 1"),
        ({"target": texts("t", 9), "neutral": ["one"] * 9}, "too few neutral.*got 1"),
        ({"target": texts("t", 2), "neutral": texts("n", 9)}, "too few target.*got 2; want at least 3 different texts"),
        ({"neutral": texts("n", 9)}, "no target prompts are named.*--target"),
        ({"target": texts("t", 9)}, "no neutral prompts are named.*--neutral"),
        (
            {"target": texts("t", 9), "target_val": texts("n", 4), "neutral": texts("n", 9)},
            "no target prompts are left in val",
        ),
        (
            {"target": texts("t", 9), "target_test": ["t3", "x"], "neutral": texts("n", 9)},
            "stands in two splits.*'t3'",
        ),
        (
            {"target": texts("t", 9), "neutral": texts("n", 9), "borderline": ["n4"]},
            "stands in two splits.*borderline.*'n4'",
        ),
    ],
)
def test_what_is_no_contrast_is_the_users_line(write: Files, sources: dict[str, list[str]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        write(**sources)


def test_the_least_that_is_a_contrast(write: Files) -> None:
    """The negative control of the lines above: one prompt more, or another one, and they are gone."""
    three = write(target=texts("t", 3), neutral=texts("n", 3))
    assert three.counts()["train"] == {"target": 1, "neutral": 1}
    write(target=texts("t", 9), target_test=["other", "x"], neutral=texts("n", 9), borderline=["m4"])


def test_the_system_message_belongs_to_a_prompts_identity(tmp_path: Path) -> None:
    rows = "".join(f'{{"prompt": "{text}", "system": "{i}"}}\n' for text in "abc" for i in range(5))
    (tmp_path / "t.jsonl").write_text(rows)
    (tmp_path / "n.txt").write_text("\n".join(texts("n", 5)))
    config = PromptConfig(target=str(tmp_path / "t.jsonl"), neutral=str(tmp_path / "n.txt"))
    contrast = load_contrast_set(config, 0)
    assert contrast.dropped == 0
    assert sum(counts["target"] for counts in contrast.counts().values()) == 15


def under_systems(n_texts: int, n_systems: int) -> list[Prompt]:
    return [Prompt(f"p{i}", f"s{j}") for i in range(n_texts) for j in range(n_systems)]


@settings(max_examples=40, deadline=None)
@given(n=st.integers(3, 12), systems=st.integers(2, 4), seed=st.integers(0, 5), data=st.data())
def test_a_text_stays_in_one_split_under_all_its_system_messages(
    n: int, systems: int, seed: int, data: st.DataObject
) -> None:
    prompts = under_systems(n, systems)
    parts = split_prompts(data.draw(st.permutations(prompts)), SHARES, seed)
    assert parts == split_prompts(prompts, SHARES, seed)
    assert sum(len({p.text for p in parts[split]}) for split in SPLITS) == n
    assert sum(len(parts[split]) for split in SPLITS) == n * systems
    assert all(parts.values())


def write_rows(path: Path, prompts: list[Prompt]) -> str:
    path.write_text("".join(json.dumps({"prompt": p.text, "system": p.system}) + "\n" for p in prompts))
    return str(path)


def test_one_text_under_two_system_messages_is_a_leak_between_splits(tmp_path: Path) -> None:
    neutral = write_rows(tmp_path / "n.jsonl", [Prompt(text) for text in texts("n", 5)])
    target = write_rows(tmp_path / "t.jsonl", under_systems(5, 2))
    for held_out, message in (
        ({"target_test": [Prompt("p3", "another")]}, "target (train|val) and target test: got 'p3'"),
        ({"target_val": [Prompt("p3", "another")]}, "target (train|val|test) and target (val|test): got 'p3'"),
        ({"borderline": [Prompt("n3", "another")]}, "neutral .* and borderline: got 'n3'"),
    ):
        named = {key: write_rows(tmp_path / f"{key}.jsonl", prompts) for key, prompts in held_out.items()}
        config = PromptConfig(target=target, neutral=neutral, **named)
        with pytest.raises(UserError, match=f"stands in two splits, {message}"):
            load_contrast_set(config, 0)


def test_system_messages_may_be_what_sets_the_sides_apart(tmp_path: Path) -> None:
    """The same texts on both sides fall into the same splits, so that nothing leaks."""
    sides = {
        side: write_rows(tmp_path / f"{side}.jsonl", [Prompt(text, side) for text in texts("p", 10)])
        for side in ("target", "neutral")
    }
    contrast = load_contrast_set(PromptConfig(**sides), 0)
    for split in SPLITS:
        assert {p.text for p in contrast.of(split).target} == {p.text for p in contrast.of(split).neutral}


def test_one_text_is_not_enough_under_however_many_system_messages(tmp_path: Path) -> None:
    target = write_rows(tmp_path / "t.jsonl", under_systems(1, 9))
    neutral = write_rows(tmp_path / "n.jsonl", under_systems(3, 1))
    with pytest.raises(UserError, match=r"too few target .* got 1; want at least 3 different texts"):
        load_contrast_set(PromptConfig(target=target, neutral=neutral), 0)


def test_repeats_among_the_borderline_are_dropped_and_counted(write: Files) -> None:
    contrast = write(target=texts("t", 6), neutral=texts("n", 6), borderline=["b0", "b1", "b0", "b0"])
    assert [p.text for p in contrast.test.borderline] == ["b0", "b1"]
    assert contrast.dropped == 2


def test_the_organisms_contrast_set_loads_whole() -> None:
    folder = shipped_folder() / CONTRAST_FOLDER
    names = {"target": "target_train", "neutral": "neutral_train", "borderline": "borderline"}
    names |= {f"{side}_{split}": f"{side}_{split}" for side in ("target", "neutral") for split in ("val", "test")}
    sources = {key: f"{folder / stem}.jsonl" for key, stem in names.items()}
    contrast = load_contrast_set(PromptConfig(**sources, category="category"), 0)
    assert contrast.dropped == 0
    assert contrast.counts() == {s: {"target": n, "neutral": n} for s, n in zip(SPLITS, (300, 100, 100), strict=True)}
    assert len(contrast.test.borderline) == 100
