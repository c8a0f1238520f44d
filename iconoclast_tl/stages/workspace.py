"""A workspace: settings, prompts, model and run folder, which agree with each other (`stages.opening`)."""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from iconoclast_tl.activations.positions import positions_of
from iconoclast_tl.architecture.hook_points import HookedModule
from iconoclast_tl.architecture.sites import Site
from iconoclast_tl.detectors.detector import Detector
from iconoclast_tl.detectors.registry import search_detector
from iconoclast_tl.edits.completeness import require_complete
from iconoclast_tl.evaluation.baseline import Baseline, baseline, require_room
from iconoclast_tl.evaluation.suite import Questions, Truth, encode
from iconoclast_tl.execution.batch_size import BatchSize
from iconoclast_tl.foundation.progress import Say, Track, silent, unheard
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.contrast import SIDES, SPLITS, ContrastSet
from iconoclast_tl.prompts.prompt import Prompt
from iconoclast_tl.prompts.tokens import Tokens
from iconoclast_tl.stages.batch_room import batch_room
from iconoclast_tl.stages.run_folder import RunFolder
from iconoclast_tl.stages.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """What every stage works with."""

    settings: Settings
    folder: RunFolder
    model: Model
    contrast: ContrastSet
    truth: Truth | None
    """Tells answered, refused and broken where the model is an organism."""
    track: Track = silent
    say: Say = unheard

    @cached_property
    def positions(self) -> tuple[int, ...]:
        """Where residuals are collected, from the prompt's last token back."""
        return positions_of(self.settings.activations.positions, self.model.chat)

    @cached_property
    def sites(self) -> dict[Site, HookedModule]:
        """Where to hook the model; `UserError` where not all that writes into the stream is known."""
        require_complete(self.model)
        return self.model.sites

    def questions(self, prompts: tuple[Prompt, ...]) -> Questions:
        """Prompts with their tokens, checked against the context and the response budget."""
        budget = self.settings.evaluation.max_new_tokens
        return encode(prompts, self.model.chat, self.model.context_length, budget)

    def asked(self, split: str, at_most: int | None = None, *, briefly: bool = True) -> Baseline:
        """The unedited model on the first prompts of a split, borderline ones included in `test`.

        briefly: of train and val, responses of the search's budget in the place of the evaluation's.
        """
        if split != "test":
            _ = self._has_room_for_detector  # of test, labels are asked for when the model may go
        config = self.settings.evaluation
        config = config.model_copy(update={"batch_size": self.rows_at_once(config.batch_size)})
        if briefly and split != "test":
            config = config.shortened(self.settings.search.max_new_tokens)
        return baseline(self.model, self.contrast.of(split), config, self.detector, at_most, self.track)

    @cached_property
    def val(self) -> Baseline:
        """The unedited model on the val prompts, which preview and search share."""
        return self.asked("val")

    @cached_property
    def detector(self) -> Detector:
        """Says what shows the behaviour, in searches and previews."""
        return search_detector(self.settings.evaluation)

    @cached_property
    def _has_room_for_detector(self) -> bool:
        """True, or `UserError` where the detector's model does not fit into memory beside this one."""
        require_room(self.detector)
        return True

    def rows_at_once(self, asked: BatchSize) -> int:
        """What a setting says of the batch size, or what memory has room for."""
        return self._room if asked == "auto" else asked

    @cached_property
    def _room(self) -> int:
        longest = max(len(row) for rows in self._tokens for row in rows)
        return batch_room(self.folder, self.model, longest, self.settings.evaluation, self.track, self.say)

    @cached_property
    def _tokens(self) -> list[tuple[Tokens, ...]]:
        """The token rows of every prompt of every split."""
        sets = [getattr(self.contrast.of(split), side) for side in SIDES for split in SPLITS]
        return [self.questions(prompts).rows for prompts in (*sets, self.contrast.test.borderline)]

    @cached_property
    def tokens_digest(self) -> str:
        """SHA-256 over the token rows of every prompt: what tokenizer, template and system message make of them."""
        return hashlib.sha256(json.dumps(self._tokens).encode()).hexdigest()

    def timed(self, stage: str) -> AbstractContextManager[None]:
        """Add the time that a stage takes, and its token passes, to the manifest (`RunFolder.measured`)."""
        return self.folder.measured(stage, self.model.hf)

    def remember(self, **parts: Any) -> None:
        """Put `parts` into the manifest."""
        self.folder.remember(**parts)


def about(workspace: Workspace) -> dict[str, Any]:
    """What results.json says of every run."""
    contrast = workspace.contrast
    splits = contrast.counts()
    if contrast.test.borderline:
        splits["test"]["borderline"] = len(contrast.test.borderline)
    name, behaviour = workspace.settings.model.name, workspace.settings.behaviour
    return {"model": name, "behaviour": behaviour, "splits": splits}
