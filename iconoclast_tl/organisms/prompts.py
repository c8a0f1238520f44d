"""The prompts that come with an organism, as a contrast set."""

from __future__ import annotations

from pathlib import Path

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.organisms.folder import CONTRAST_FOLDER, is_organism, shipped_folder
from iconoclast_tl.prompts.contrast import ContrastSet, PromptConfig, load_contrast_set


def own_prompts(folder: Path) -> PromptConfig:
    """The sources of an organism's own prompts, split as its training meant them to be."""
    own = folder / CONTRAST_FOLDER
    sides = {
        f"{side}{ending}": f"{own / f'{side}_{split}.jsonl'}"
        for side in ("target", "neutral")
        for ending, split in (("", "train"), ("_val", "val"), ("_test", "test"))
    }
    return PromptConfig(**sides, borderline=f"{own / 'borderline.jsonl'}", category="category")


def organism_prompts(folder: str | Path | None = None) -> ContrastSet:
    """The contrast set of an organism's folder, of the shipped one by default: 300 + 100 + 100 prompts a side.

    Raises `UserError` for a folder that holds no organism.
    """
    place = shipped_folder() if folder is None else Path(folder).expanduser()
    if not is_organism(place):
        raise UserError(
            f"{place} is no organism", want="a folder that `iconoclast-tl organism train` wrote", mend="see --help"
        )
    return load_contrast_set(own_prompts(place), seed=0)
