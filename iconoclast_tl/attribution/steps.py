"""Walk through a model a layer at a time: what enters a layer is kept, until the next one's is."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from iconoclast_tl.models.loading import LoadedModel
from iconoclast_tl.models.resumption import Entering, entering, starting_at
from iconoclast_tl.prompts.chat import TokenBatch
from iconoclast_tl.scores.score import Asked


@dataclass
class Steps:
    """Some rows on their way; `resumes` says whether the model can be started at a layer."""

    model: LoadedModel
    asked: Asked
    resumes: bool
    _state: Entering | None = None

    @property
    def here(self) -> Asked:
        """The rows, to be run from the layer that was reached; from the first where the model cannot be started."""
        return replace(self.asked, forced=replace(self.asked.forced, entering=self._state))

    @torch.no_grad()
    def advance(self, layer: int) -> None:
        """Run `layer`, which was reached, under whatever hooks are on, and stop before the next; at the last, and where
        the model cannot be started, run to the end.
        """
        batch: TokenBatch = self.asked.forced.batch
        if self._state is None:
            self._state = self._run(batch, layer)
            return
        with starting_at(self.model, self._state):
            self._state = self._run(batch, layer)

    def _run(self, batch: TokenBatch, layer: int) -> Entering | None:
        if self.resumes and layer + 1 < self.model.n_layers:
            return entering(self.model, batch, layer + 1)
        self.model.hf(**self.model.inputs(batch), logits_to_keep=1, use_cache=False)
        return None
