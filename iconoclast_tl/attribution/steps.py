"""Run a model one layer at a time; only what enters the current layer is kept."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from iconoclast_tl.execution.resumption import Entering, entering, starting_at
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.tokens import TokenBatch
from iconoclast_tl.scores.score import ScoreBatch


@dataclass
class Steps:
    """Some rows and the layer that they have reached. resumes: whether the model can be started at a layer."""

    model: Model
    asked: ScoreBatch
    resumes: bool
    _state: Entering | None = None

    @property
    def here(self) -> ScoreBatch:
        """The rows, to be run from the layer that they have reached; from the first if the model cannot resume."""
        return replace(self.asked, forced=replace(self.asked.forced, entering=self._state))

    @torch.no_grad()
    def advance(self, layer: int) -> None:
        """Run `layer` under the hooks that are on and stop before the next one.

        At the last layer, and where the model cannot resume, run to the end.
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
