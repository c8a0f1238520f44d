"""Run the tokens with which all prompts begin once: the system message and the template's first tokens.

Keys and values of the shared prefix are computed once for every candidate edit, and every row attends to those of its
candidate. Gradients flow through them. Works where the cache is plain keys and values in every layer; elsewhere
(sliding windows, linear attention) rows are run whole. `shares` compares the two before they are relied on.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor, nn

from iconoclast_tl.execution.batching import is_out_of_memory
from iconoclast_tl.execution.candidates import BatchCandidates
from iconoclast_tl.execution.resumption import Entering, entering, starting_at
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.tokens import TokenBatch, Tokens, left_pad

LEAST = 4
"""Tokens of a prefix that is worth sharing."""
_KNOWN: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@dataclass(frozen=True)
class Prefix:
    """The tokens that rows share, and perhaps what enters a layer there, where only later ones are run."""

    tokens: tuple[int, ...]
    entering: Entering | None = None

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.tokens)

    @property
    def batch(self) -> TokenBatch:
        """The prefix as one row."""
        ids = torch.tensor([self.tokens])
        return TokenBatch((0,), ids, torch.ones_like(ids))

    def entered(self, model: Model, layer: int) -> Prefix:
        """The same, to be run from `layer` on; no hooks may be on."""
        return Prefix(self.tokens, entering(model, self.batch, layer))

    def cache(self, model: Model, assigned: BatchCandidates | None = None, candidates: int = 1) -> Any:
        """Keys and values under every candidate that the hooks hold, one row each; gradients are kept."""
        one, n = self.batch, candidates
        batch = TokenBatch(tuple(range(n)), one.input_ids.expand(n, -1), one.attention_mask.expand(n, -1))
        start: AbstractContextManager[None] = nullcontext()
        if self.entering is not None:
            start = starting_at(model, self.entering.take(torch.zeros(n, dtype=torch.long), slice(None)))
        before = None if assigned is None else assigned.candidates
        if assigned is not None:
            assigned.candidates = torch.arange(n) if n > 1 else None
        cache = _new_cache(model)
        try:
            with start:
                model.hf(**model.inputs(batch), past_key_values=cache, use_cache=True, logits_to_keep=1)
        finally:
            if assigned is not None:
                assigned.candidates = before
        return cache


def shared_prefix(model: Model, rows: Sequence[Tokens], left: int = 1) -> Prefix | None:
    """What all rows begin with, `left` tokens of each being left; None where that is short, or cannot be shared."""
    first, last = min(rows), max(rows)  # in lexicographic order: what these two share, all share
    most = min(map(len, rows)) - left
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), most)
    length = min(length, most)
    if len(rows) < 2 or length < LEAST or not shares(model):
        return None
    return Prefix(tuple(first[:length]))


def rows_of(model: Model, cache: Any, candidates: Int[Tensor, "row"]) -> Any:
    """The cache of a batch, each row with the keys and values of its candidate's prefix."""
    own = _new_cache(model)
    filled = next(layer for layer in cache.layers if layer.is_initialized)
    length = filled.keys.shape[-2]
    for mine, layer in zip(own.layers, cache.layers, strict=True):
        if layer.is_initialized:
            where = candidates.to(layer.keys.device)
            keys, values = layer.keys[where], layer.values[where]
        else:  # handed through: nothing reads these, but masks are made by the length of the first layer's
            keys = values = filled.keys.new_zeros(1, 1, 1, 1).expand(len(candidates), 1, length, 1)
        mine.lazy_initialization(keys, values)
        mine.keys, mine.values = keys, values
    return own


@torch.no_grad()
def shares(model: Model) -> bool:
    """Whether rows after a cached prefix give the logits that they give as a whole; found out once a model.

    Another order of summation: 1e-5 of the largest logit, or 8 roundings of the dtype where that is more.
    """
    if model.hf not in _KNOWN:
        _KNOWN[model.hf] = _is_plain(model) and _agrees(model)
    return _KNOWN[model.hf]


def _agrees(model: Model) -> bool:
    vocabulary = int(model.hf.get_input_embeddings().weight.shape[0])
    tokens = torch.randint(vocabulary, (LEAST + 5,), generator=torch.Generator().manual_seed(0)).tolist()
    prefix, ends = Prefix(tuple(tokens[:LEAST])), [tokens[LEAST : LEAST + 3], tokens[LEAST + 3 :]]
    try:
        whole = left_pad([[*prefix.tokens, *end] for end in ends], model.pad_id)
        expected = model.hf(**model.inputs(whole), logits_to_keep=1, use_cache=False).logits
        rest = left_pad(ends, model.pad_id, cached=len(prefix))
        cache = rows_of(model, prefix.cache(model), torch.zeros(2, dtype=torch.long))
        found = model.hf(**model.inputs(rest), past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    except Exception as error:  # a cache of another kind may fail in any way
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        return False
    tolerance = max(1e-5, 8 * torch.finfo(expected.dtype).eps)
    return bool((expected - found).abs().max() <= tolerance * expected.abs().max())


def _is_plain(model: Model) -> bool:
    from transformers.cache_utils import DynamicLayer

    cache = _new_cache(model)
    return bool(cache.layers) and all(type(layer) is DynamicLayer for layer in cache.layers)


def _new_cache(model: Model) -> Any:
    from transformers import DynamicCache

    return DynamicCache(config=model.hf.config)
