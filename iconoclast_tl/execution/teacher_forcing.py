"""Prompts with given continuations, laid out so that one slice of the logits holds all predictions.

What all prompts begin with may be run once for all rows (`shared_prefix`). Where only layers from some layer on are
edited, what enters that layer is the same for every strength: `entered` keeps it, and the layers below are not run
again. Where a changed model repeats a response, `repeated` tells so.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from iconoclast_tl.execution.batching import Room
from iconoclast_tl.execution.candidates import BatchCandidates
from iconoclast_tl.execution.head import final_states, head_logits
from iconoclast_tl.execution.resumption import Entering, entering, starting_at
from iconoclast_tl.execution.shared_prefix import Prefix, rows_of, shared_prefix
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.tokens import TokenBatch, Tokens

HELD = 256
"""Positions whose logits are held at once, where their likeliest token alone is wanted."""


@dataclass(frozen=True)
class Forced:
    """Prompts padded on the left, continuations on the right; the j-th of the last k positions predicts token j."""

    batch: TokenBatch
    """Without the prefix."""
    tokens: Int[Tensor, "batch k"]
    """The continuations; the padding token where one is shorter."""
    real: Bool[Tensor, "batch k"]
    """Where a continuation has a token (column 0 always counts)."""
    entering: Entering | None = None
    """What enters the layer from which to run; None: run all layers."""
    prefix: Prefix | None = None
    """What stands before every row."""

    def take(self, rows: Int[Tensor, "taken"], times: int = 1) -> Forced:
        """These rows, in this order, `times` over, without the columns that none of them fills: k may become less."""
        k = int(self.real[rows].any(0).sum())
        rows = rows.repeat(times)
        columns = slice(int(self.batch.attention_mask[rows].any(0).int().argmax()), self._width(k))
        ids, mask = (tensor[rows, columns] for tensor in (self.batch.input_ids, self.batch.attention_mask))
        part = TokenBatch(tuple(range(len(rows))), ids, mask, self.batch.cached)
        kept = None if self.entering is None else self.entering.take(rows, columns)
        return Forced(part, self.tokens[rows, :k], self.real[rows, :k], kept, self.prefix)

    def beginning(self, k: int) -> Forced:
        """The first k tokens of every continuation."""
        width = self._width(k)
        ids, mask = (tensor[:, :width] for tensor in (self.batch.input_ids, self.batch.attention_mask))
        part = TokenBatch(self.batch.rows, ids, mask, self.batch.cached)
        kept = self.entering and Entering(self.entering.layer, self.entering.states[:, :width])
        return Forced(part, self.tokens[:, :k], self.real[:, :k], kept, self.prefix)

    @property
    def by_length(self) -> Int[Tensor, "batch"]:
        """The rows, short continuations first: of parts in this order `take` leaves out the most."""
        return self.real.sum(-1).argsort(stable=True)

    def _width(self, k: int) -> int:
        """The columns that k tokens need."""
        return self.batch.input_ids.shape[1] - max(self.tokens.shape[1] - k, 0)

    def repeated_by(self, likeliest: Int[Tensor, "batch k"]) -> Bool[Tensor, "batch"]:
        """Whether greedy decoding with these predictions says the continuation again, token for token."""
        return ((likeliest.cpu() == self.tokens) | ~self.real).all(-1)


def force(
    rows: Sequence[Tokens],
    continuations: Sequence[Sequence[int]],
    k: int,
    pad_id: int,
    prefix: Prefix | None = None,
) -> Forced:
    """Lay out prompts with up to k tokens of their continuations; the k-th is predicted and not fed.

    prefix: what all prompts begin with, which is run once for all rows.
    """
    cached = 0 if prefix is None else len(prefix)
    rows = [row[cached:] for row in rows]
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
    batch = TokenBatch(tuple(range(len(rows))), torch.tensor(ids), torch.tensor(mask), cached)
    return Forced(batch, torch.tensor(tokens), torch.tensor(real), prefix=prefix)


def entered(model: Model, forced: Forced, layer: int, batch_size: int) -> Forced:
    """The same, to be run from `layer` on; no hooks may be on. Keeps n · pos · d_model values of the model's dtype."""
    if layer == 0:
        return forced
    whole, prefix = forced.batch, forced.prefix
    with torch.no_grad():
        cache = None if prefix is None else prefix.cache(model)

    def enter(rows: Tensor) -> Entering:
        batch = TokenBatch((), whole.input_ids[rows], whole.attention_mask[rows], whole.cached)
        own = None if cache is None else rows_of(model, cache, torch.zeros(len(rows), dtype=torch.long))
        return entering(model, batch, layer, own)

    found = Room(batch_size).over(torch.arange(len(forced.tokens)), enter)
    states = Entering(layer, torch.cat([one.states for one in found]))
    return replace(forced, entering=states, prefix=prefix and prefix.entered(model, layer))


@torch.no_grad()
def repeated(
    model: Model, rows: Sequence[Tokens], responses: Sequence[Sequence[int]], batch_size: int
) -> Bool[Tensor, "n"]:
    """Which greedy responses the model, under whatever hooks are on, would give again: nothing need be generated there.

    One forward pass in the place of one a token. Exact but for ties within rounding, since batches differ.
    """
    longest = max(len(response) for response in responses)
    forced = force(rows, responses, longest, model.pad_id, shared_prefix(model, rows))
    found = torch.zeros(len(rows), dtype=torch.bool)

    def check(part: Tensor) -> None:
        taken = forced.take(part)
        found[part] = taken.repeated_by(likeliest(model, forced_states(model, taken)))

    Room(batch_size).over(forced.by_length, check)
    return found


def forced_logits(model: Model, forced: Forced) -> Float[Tensor, "batch k vocab"]:
    """The model's predictions of the continuations, float32, under whatever hooks are on; gradients are kept."""
    return head_logits(model, forced_states(model, forced))


def forced_states(
    model: Model, forced: Forced, assigned: BatchCandidates | None = None, candidates: int = 1
) -> Float[Tensor, "batch k d"]:
    """The final states from which the continuations are predicted, for `head.head_logits`; gradients are kept.

    assigned: where the hooks hold several candidates, which row belongs to which.
    """
    inputs, cache = model.inputs(forced.batch), None
    if forced.prefix is not None:
        own = None if assigned is None else assigned.candidates
        own = torch.zeros(len(forced.tokens), dtype=torch.long) if own is None else own
        cache = rows_of(model, forced.prefix.cache(model, assigned, candidates), own)
    with nullcontext() if forced.entering is None else starting_at(model, forced.entering):
        given = {**inputs, "past_key_values": cache, "use_cache": cache is not None}
        return final_states(model, given, forced.tokens.shape[1])


def likeliest(model: Model, states: Float[Tensor, "batch k d"]) -> Int[Tensor, "batch k"]:
    """The likeliest token at every position; logits of few positions at a time are held."""
    flat = states.reshape(-1, states.shape[-1])
    found = [head_logits(model, part).argmax(-1) for part in torch.split(flat, HELD)]
    return torch.cat(found).reshape(states.shape[:-1])
