"""Batched greedy generation on the Hugging Face model, under whatever hooks are on.

The loop is our own: rows that have ended, or whose label is decided, leave the batch, and rows of one batch may belong
to different candidates of an edit. Without those it says, token for token, what `transformers.generate` says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from iconoclast_tl.execution.batching import over_batches
from iconoclast_tl.execution.candidates import BatchCandidates
from iconoclast_tl.execution.shared_prefix import rows_of, shared_prefix
from iconoclast_tl.foundation.progress import Track, silent
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.tokens import TokenBatch, Tokens

COMPACT_BELOW = 0.75
"""Share of rows still going at which the others are taken out of the batch; taking them out copies the cache."""
DECIDE_EVERY = 4
"""Tokens between two questions whether a row's label is decided."""

Decided = Callable[[str], bool]
"""Whether a response that begins so has its label already, whatever follows."""


@dataclass(frozen=True)
class Response:
    """A greedy continuation."""

    tokens: tuple[int, ...]
    """The new tokens, the end token included where it came."""
    text: str
    """The same without special tokens, stripped."""
    finished: bool
    """Whether the end token came within the budget; a cut-off answer is another kind of answer."""


@dataclass(frozen=True)
class Lanes:
    """Which candidate every row of a list belongs to, and the hooks that must be told."""

    rows: BatchCandidates
    candidates: Sequence[int]


def generate(
    model: Model,
    rows: Sequence[Tokens],
    max_new_tokens: int,
    batch_size: int,
    track: Track = silent,
    description: str = "generate",
    lanes: Lanes | None = None,
    decided: Decided | None = None,
) -> list[Response]:
    """Continue `rows` greedily by at most `max_new_tokens`, left-padded, in the order given.

    lanes: the candidate of each row, where several are asked at once. decided: a row whose text is so is cut there.
    Sampling settings that came with the model are not used.
    """
    responses: dict[int, Response] = {}
    start = _Start(model, rows, lanes)

    def continue_batch(batch: TokenBatch) -> None:
        assigned = None if lanes is None else torch.tensor([lanes.candidates[row] for row in batch.rows])
        cache = start.cache(len(batch.rows), assigned)
        loop = _Greedy(model, batch, max_new_tokens, None if lanes is None else lanes.rows, assigned, cache)
        responses.update(zip(batch.rows, loop.run(decided), strict=True))

    over_batches(continue_batch, start.rows, model.pad_id, batch_size, track, description, start.cached)
    return [responses[row] for row in range(len(rows))]


def end_tokens(model: Model) -> list[int]:
    """The tokens that end a response: the generation config's, else the tokenizer's."""
    found = model.hf.generation_config.eos_token_id
    if found is None:
        found = model.tokenizer.eos_token_id
    return [] if found is None else [found] if isinstance(found, int) else list(found)


class _Start:
    """Where generation starts: rows without what all share, whose keys and values are computed once."""

    def __init__(self, model: Model, rows: Sequence[Tokens], lanes: Lanes | None) -> None:
        self._model, self._lanes = model, lanes
        if lanes is not None:
            lanes.rows.candidates = None  # a pass that compares two ways has rows of its own
        prefix = shared_prefix(model, rows) if rows else None
        self.cached = 0 if prefix is None else len(prefix)
        self.rows = [row[self.cached :] for row in rows]
        self._cache = None
        if prefix is not None:
            n = 1 if lanes is None else max(lanes.candidates) + 1
            with torch.no_grad():
                self._cache = prefix.cache(model, None if lanes is None else lanes.rows, n)

    def cache(self, n: int, candidates: Int[Tensor, "batch"] | None) -> Any:
        """Of n rows of these candidates; empty where they share nothing."""
        from transformers import DynamicCache

        if self._cache is None:
            return DynamicCache(config=self._model.hf.config)
        return rows_of(self._model, self._cache, torch.zeros(n, dtype=torch.long) if candidates is None else candidates)


class _Greedy:
    """One batch on its way: what has been said, the cache, and which rows are still going."""

    def __init__(
        self,
        model: Model,
        batch: TokenBatch,
        max_new_tokens: int,
        rows: BatchCandidates | None,
        candidates: Int[Tensor, "batch"] | None,
        cache: Any,
    ) -> None:
        self._model, self._budget, self._rows = model, max_new_tokens, rows
        self._inputs: dict[str, Any] = model.inputs(batch)
        self._cache = cache
        self._said: list[list[int]] = [[] for _ in batch.rows]
        self._where = torch.arange(len(batch.rows))
        self._going = torch.ones(len(batch.rows), dtype=torch.bool)
        self._ends = torch.tensor(end_tokens(model), dtype=torch.long)
        self._candidates = candidates

    @torch.no_grad()
    def run(self, decided: Decided | None) -> list[Response]:
        for step in range(self._budget):
            tokens = self._next()
            for row in self._going.nonzero()[:, 0].tolist():
                self._said[int(self._where[row])].append(int(tokens[row]))
            self._going &= ~torch.isin(tokens, self._ends)
            if decided is not None and step % DECIDE_EVERY == DECIDE_EVERY - 1 and bool(self._going.any()):
                self._stop_decided(decided)
            if not bool(self._going.any()):
                break
            self._advance(self._compact(tokens))
        ends = set(self._ends.tolist())
        return [_response(self._model, said, ends) for said in self._said]

    def _next(self) -> Int[Tensor, "batch"]:
        if self._rows is not None and self._candidates is not None:
            self._rows.candidates = self._candidates.to(self._model.device)
        output = self._model.hf(**self._inputs, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        tokens: Tensor = output.logits[:, -1].argmax(-1).cpu()
        return tokens

    def _stop_decided(self, decided: Decided) -> None:
        going = self._going.nonzero()[:, 0].tolist()
        texts = self._model.tokenizer.batch_decode(
            [self._said[int(self._where[row])] for row in going], skip_special_tokens=True
        )
        for row, text in zip(going, texts, strict=True):
            self._going[row] = not decided(text)

    def _compact(self, tokens: Tensor) -> Tensor:
        """Take the rows that have ended out of the batch, once that is worth copying the cache."""
        if float(self._going.float().mean()) > COMPACT_BELOW:
            return tokens
        kept = self._going.nonzero()[:, 0]
        self._cache.batch_select_indices(kept.to(self._model.device))
        self._inputs = {name: tensor[kept.to(tensor.device)] for name, tensor in self._inputs.items()}
        self._where, self._going = self._where[kept], self._going[kept]
        if self._candidates is not None:
            self._candidates = self._candidates[kept]
        return tokens[kept]

    def _advance(self, tokens: Tensor) -> None:
        mask = self._inputs["attention_mask"]
        self._inputs["input_ids"] = tokens[:, None].to(mask.device)
        self._inputs["attention_mask"] = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        if "position_ids" in self._inputs:
            self._inputs["position_ids"] = self._inputs["position_ids"][:, -1:] + 1


def _response(model: Model, tokens: list[int], ends: set[int]) -> Response:
    text = model.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    return Response(tuple(tokens), text, bool(tokens) and tokens[-1] in ends)
