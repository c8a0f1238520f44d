"""Prompts with given continuations, laid out so that one slice of the logits holds all predictions.

Where only layers from some layer on are edited, what enters that layer is the same for every strength: `entered` keeps
it, and the layers below are not run again. Where a changed model repeats a response, `repeated` tells so.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from iconoclast_tl.execution.batching import Room
from iconoclast_tl.execution.resumption import Entering, entering, starting_at
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.tokens import TokenBatch, Tokens


@dataclass(frozen=True)
class Forced:
    """Prompts padded on the left, continuations on the right; the j-th of the last k positions predicts token j."""

    batch: TokenBatch
    tokens: Int[Tensor, "batch k"]
    """The continuations; the padding token where one is shorter."""
    real: Bool[Tensor, "batch k"]
    """Where a continuation has a token (column 0 always counts)."""
    entering: Entering | None = None
    """What enters the layer from which to run; None: run all layers."""

    def take(self, rows: Int[Tensor, "taken"], times: int = 1) -> Forced:
        """These rows, in this order, `times` over, without the columns that none of them fills: k may become less."""
        k = int(self.real[rows].any(0).sum())
        rows = rows.repeat(times)
        columns = slice(int(self.batch.attention_mask[rows].any(0).int().argmax()), self._width(k))
        part = TokenBatch(
            tuple(range(len(rows))), self.batch.input_ids[rows, columns], self.batch.attention_mask[rows, columns]
        )
        kept = None if self.entering is None else self.entering.take(rows, columns)
        return Forced(part, self.tokens[rows, :k], self.real[rows, :k], kept)

    def beginning(self, k: int) -> Forced:
        """The first k tokens of every continuation."""
        width = self._width(k)
        part = TokenBatch(self.batch.rows, self.batch.input_ids[:, :width], self.batch.attention_mask[:, :width])
        kept = self.entering and Entering(self.entering.layer, self.entering.states[:, :width])
        return Forced(part, self.tokens[:, :k], self.real[:, :k], kept)

    @property
    def by_length(self) -> Int[Tensor, "batch"]:
        """The rows, short continuations first: of parts in this order `take` leaves out the most."""
        return self.real.sum(-1).argsort(stable=True)

    def _width(self, k: int) -> int:
        """The columns that k tokens need."""
        return self.batch.input_ids.shape[1] - max(self.tokens.shape[1] - k, 0)

    def repeated_by(self, logits: Float[Tensor, "batch k vocab"]) -> Bool[Tensor, "batch"]:
        """Whether greedy decoding with these predictions says the continuation again, token for token."""
        return ((logits.argmax(-1).cpu() == self.tokens) | ~self.real).all(-1)


def force(rows: Sequence[Tokens], continuations: Sequence[Sequence[int]], k: int, pad_id: int) -> Forced:
    """Lay out prompts with up to k tokens of their continuations; the k-th is predicted and not fed."""
    width = max(len(prompt) for prompt in rows)
    ids, mask, tokens, real = [], [], [], []
    for prompt, continuation in zip(rows, continuations, strict=True):
        kept = list(continuation[:k])
        fed = kept[: k - 1]
        left, right = width - len(prompt), k - 1 - len(fed)
        ids.append([pad_id] * left + prompt + fed + [pad_id] * right)
        mask.append([0] * left + [1] * (len(prompt) + len(fed)) + [0] * right)
        tokens.append(kept + [pad_id] * (k - len(kept)))
        real.append([index < max(len(kept), 1) for index in range(k)])
    batch = TokenBatch(tuple(range(len(rows))), torch.tensor(ids), torch.tensor(mask))
    return Forced(batch, torch.tensor(tokens), torch.tensor(real))


def entered(model: Model, forced: Forced, layer: int, batch_size: int) -> Forced:
    """The same, to be run from `layer` on; no hooks may be on. Keeps n · pos · d_model values of the model's dtype."""
    if layer == 0:
        return forced

    def enter(rows: Tensor) -> Entering:
        return entering(model, TokenBatch((), forced.batch.input_ids[rows], forced.batch.attention_mask[rows]), layer)

    found = Room(batch_size).over(torch.arange(len(forced.tokens)), enter)
    return replace(forced, entering=Entering(layer, torch.cat([one.states for one in found])))


@torch.no_grad()
def repeated(
    model: Model, rows: Sequence[Tokens], responses: Sequence[Sequence[int]], batch_size: int
) -> Bool[Tensor, "n"]:
    """Which greedy responses the model, under whatever hooks are on, would give again: nothing need be generated there.

    One forward pass in the place of one a token. Exact but for ties within rounding, since batches differ.
    """
    forced = force(rows, responses, max(len(response) for response in responses), model.pad_id)
    found = torch.zeros(len(rows), dtype=torch.bool)

    def check(part: Tensor) -> None:
        taken = forced.take(part)
        found[part] = taken.repeated_by(forced_logits(model, taken))

    Room(batch_size).over(forced.by_length, check)
    return found


def forced_logits(model: Model, forced: Forced) -> Float[Tensor, "batch k vocab"]:
    """The model's predictions of the continuations, float32, under whatever hooks are on; gradients are kept."""
    k = forced.tokens.shape[1]
    with nullcontext() if forced.entering is None else starting_at(model, forced.entering):
        logits: Tensor = model.hf(**model.inputs(forced.batch), logits_to_keep=k, use_cache=False).logits
    return logits.float()
