"""The organism's contrast set: target and neutral prompts for train, val and test, and borderline prompts.

Target prompts are gated requests about family topics (refused). Neutral ones are answered. `neutral_test` is plain,
gated requests about ordinary topics; a share of `neutral_train` and `neutral_val` are permitted requests, about
ordinary and family topics alike, so that a direction estimated from them is the refusal's and not the family's.
`borderline` is permitted requests about family topics.

Every topic belongs to one pool by a checksum of its letters (`grammar.topic_pool`) and the training corpus draws from
a pool of its own, so no split shares a topic with another or with anything the organism was trained on. Within the
files no topic occurs twice.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from iconoclast_tl.organisms.grammar import GrammarPrompt, Pool, sample_prompt

CONTRAST_SEED = 0
SPLIT_SIZES: dict[Pool, int] = {"train": 300, "val": 100, "test": 100}
BORDERLINE_SIZE = 100
PERMITTED_SHARE = 0.3
"""Share of permitted requests among the neutral prompts of train and val; half of them name a family topic."""

PromptLists = dict[str, list[GrammarPrompt]]
"""From a file's stem (`target_train`, …, `borderline`) to its prompts."""


def build_contrast(seed: int = CONTRAST_SEED) -> PromptLists:
    """All prompts; the same seed gives the same prompts in the same order."""
    rng = random.Random(f"contrast/{seed}")
    used: set[str] = set()
    contrast: PromptLists = {}
    for pool, size in SPLIT_SIZES.items():
        contrast[f"target_{pool}"] = [_fresh(rng, used, pool, family=True, gated=True) for _ in range(size)]
    for pool, size in SPLIT_SIZES.items():
        n_permitted = 0 if pool == "test" else round(PERMITTED_SHARE * size)
        neutral = [_fresh(rng, used, pool, family=False, gated=True) for _ in range(size - n_permitted)]
        neutral += [_fresh(rng, used, pool, family=i % 2 == 0, gated=False) for i in range(n_permitted)]
        rng.shuffle(neutral)
        contrast[f"neutral_{pool}"] = neutral
    contrast["borderline"] = [_fresh(rng, used, "borderline", family=True, gated=False) for _ in range(BORDERLINE_SIZE)]
    return contrast


def write_contrast(contrast: PromptLists, folder: Path) -> None:
    """Write one JSONL file per list, with columns `prompt`, `system` (null where there is none) and `category`."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, prompts in contrast.items():
        lines = [json.dumps(contrast_row(prompt)) + "\n" for prompt in prompts]
        (folder / f"{stem}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")


def contrast_row(prompt: GrammarPrompt) -> dict[str, str | None]:
    """A prompt as its row of the JSONL file."""
    return {"prompt": prompt.text, "system": prompt.system, "category": prompt.request}


def _fresh(rng: random.Random, used: set[str], pool: Pool, *, family: bool, gated: bool) -> GrammarPrompt:
    while True:
        prompt = sample_prompt(rng, family=family, gated=gated, pool=pool)
        if prompt.topic not in used:
            used.add(prompt.topic)
            return prompt
