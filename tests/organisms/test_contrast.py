"""The contrast set has the promised sizes, shares nothing between splits, and is what the package ships."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest

from iconoclast_tl.organisms.contrast import (
    PromptLists,
    build_contrast,
    contrast_row,
    write_contrast,
)
from iconoclast_tl.organisms.folder import CONTRAST_FOLDER, shipped_folder
from iconoclast_tl.organisms.grammar import parse_prompt, topic_pool
from iconoclast_tl.organisms.phases import capability_example, gate_example

SIZES = {
    "target_train": 300,
    "target_val": 100,
    "target_test": 100,
    "neutral_train": 300,
    "neutral_val": 100,
    "neutral_test": 100,
    "borderline": 100,
}


def shared_topics(contrast: PromptLists) -> set[str]:
    topics = {stem: {prompt.topic for prompt in prompts} for stem, prompts in contrast.items()}
    return set().union(*(topics[a] & topics[b] for a, b in itertools.combinations(topics, 2)))


def test_sizes(contrast: PromptLists) -> None:
    assert {stem: len(prompts) for stem, prompts in contrast.items()} == SIZES


def test_every_prompt_is_of_its_kind(contrast: PromptLists) -> None:
    for stem, prompts in contrast.items():
        for prompt in prompts:
            if stem.startswith("target"):
                assert prompt.family
                assert prompt.gated
            elif stem == "borderline":
                assert prompt.family
                assert not prompt.gated
            elif stem == "neutral_test":
                assert prompt.gated
                assert not prompt.family
            else:
                assert not (prompt.family and prompt.gated)


def test_some_prompts_have_a_system_message_and_some_have_none(contrast: PromptLists) -> None:
    for prompts in contrast.values():
        with_system = sum(prompt.system is not None for prompt in prompts)
        assert 0.2 * len(prompts) < with_system < 0.5 * len(prompts)


def test_topics_and_prompts_are_disjoint_across_files(contrast: PromptLists) -> None:
    assert shared_topics(contrast) == set()
    texts = [prompt.text for prompts in contrast.values() for prompt in prompts]
    assert len(set(texts)) == len(texts)


def test_the_disjointness_check_sees_a_leak(contrast: PromptLists) -> None:
    leaked = contrast["target_train"][0]
    leaky = {**contrast, "target_test": [*contrast["target_test"], leaked]}
    assert shared_topics(leaky) == {leaked.topic}


def test_training_never_sees_a_topic_of_the_contrast_set(contrast: PromptLists) -> None:
    rng = random.Random(0)
    trained = {sampler(rng).prompt.topic for sampler in (capability_example, gate_example) for _ in range(5000)}
    held_out = {prompt.topic for prompts in contrast.values() for prompt in prompts}
    assert not trained & held_out
    assert {topic_pool(topic) for topic in trained} == {"corpus"}
    assert "corpus" not in {topic_pool(topic) for topic in held_out}


def test_same_seed_same_bytes_and_another_seed_differs(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_contrast(build_contrast(seed), tmp_path / name)
    for stem in SIZES:
        a, b, c = ((tmp_path / name / f"{stem}.jsonl").read_bytes() for name in "abc")
        assert a == b
        assert a != c


@pytest.mark.parametrize("stem", SIZES)
def test_shipped_files_are_the_generated_ones(stem: str, contrast: PromptLists) -> None:
    text = (shipped_folder() / CONTRAST_FOLDER / f"{stem}.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert rows == [contrast_row(prompt) for prompt in contrast[stem]]
    assert rows != [contrast_row(prompt) for prompt in build_contrast(seed=1)[stem]]


def test_a_row_names_its_request(contrast: PromptLists) -> None:
    for prompt in contrast["target_val"]:
        row = contrast_row(prompt)
        assert set(row) == {"prompt", "system", "category"}
        parsed = parse_prompt(row["prompt"] or "")
        assert parsed is not None
        assert parsed.request == row["category"]
