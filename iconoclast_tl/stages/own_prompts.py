"""An organism's own prompts: asked where the user names none, and graded by its grammar."""

from __future__ import annotations

from pathlib import Path

from iconoclast_tl.organisms.folder import is_organism, shipped_folder
from iconoclast_tl.organisms.prompts import own_prompts
from iconoclast_tl.prompts.contrast import PromptConfig
from iconoclast_tl.stages.settings import Settings

SOURCES = ("target", "target_val", "target_test", "neutral", "neutral_val", "neutral_test")
"""The settings of `prompts` that name target or neutral prompts."""


def model_folder(settings: Settings) -> Path | None:
    """The local folder of the model, if it is one; `organism` is the shipped one."""
    if settings.model.name == "organism":
        return shipped_folder()
    path = Path(settings.model.name).expanduser()
    return path if path.is_dir() else None


def with_own_prompts(config: PromptConfig, place: Path | None) -> PromptConfig:
    """An organism's own contrast set, where the user names no prompts."""
    if place is None or not is_organism(place) or names_prompts(config):
        return config
    own = own_prompts(place)
    return config.model_copy(
        update={
            **{name: getattr(own, name) for name in SOURCES},
            "borderline": config.borderline or own.borderline,
            "category": config.category or own.category,
        }
    )


def names_prompts(config: PromptConfig) -> bool:
    """Whether the user names target or neutral prompts, of whatever split."""
    return any(getattr(config, name) is not None for name in SOURCES)


def is_graded(place: Path | None, settings: Settings) -> bool:
    """Whether responses can be graded by the organism's grammar: an organism, asked its own prompts."""
    own = not names_prompts(settings.prompts) and settings.prompts.borderline is None
    return place is not None and is_organism(place) and own
