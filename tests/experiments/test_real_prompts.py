"""The contrast set of `make real`: large enough, and no split shares a frame or a topic with another."""

from __future__ import annotations

import tomllib
from itertools import combinations

from experiments.real.prompts import FILE, FRAMES_A_TOPIC, contrast_set, cross


def test_each_side_has_two_hundred_prompts_and_none_twice() -> None:
    found = contrast_set()
    for side in ("target", "neutral"):
        assert sum(len(prompts) for stem, prompts in found.items() if stem.startswith(side)) >= 200
    every = [prompt for prompts in found.values() for prompt in prompts]
    assert len({prompt.lower() for prompt in every}) == len(every)
    assert not any("{" in prompt for prompt in every)


def test_no_split_shares_a_frame_or_a_topic_with_another() -> None:
    written = tomllib.loads(FILE.read_text(encoding="utf-8"))
    for side in ("target", "neutral"):
        for part in ("frames", "topics"):
            splits = [set(written[side][split][part]) for split in ("train", "val", "test")]
            assert not any(one & other for one, other in combinations(splits, 2))


def test_every_topic_meets_as_many_frames_and_frames_take_turns() -> None:
    frames = ["{topic}?", "Please {topic}.", "{Topic}!", "Now {topic}."]
    found = cross(frames, ["go", "stay", "wait", "run"])
    assert len(set(found)) == len(found) == 4 * FRAMES_A_TOPIC
    assert found[:3] == ["go?", "Please go.", "Go!"]
    starts = [sum(prompt.startswith(word) for prompt in found) for word in ("Please", "Now")]
    assert starts == [3, 3]
