"""How far an edit moves the model's distribution on prompts that it should leave alone.

KL(base ‖ edited) over the whole vocabulary, in nats: at the first token of the response, and averaged over the base's
own greedy continuation, teacher-forced. The first token alone looks perfect while later text decays, so both are
measured, in one forward pass.

The same pass tells which responses an edit leaves as they are: where the edited model's likeliest token is the base's
at every position of the base's response, greedy decoding says the same again, and nothing need be generated.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from iconoclast_tl.execution.batching import Room
from iconoclast_tl.execution.candidates import BatchCandidates
from iconoclast_tl.execution.generation import Response
from iconoclast_tl.execution.teacher_forcing import entered, force, forced_logits
from iconoclast_tl.foundation.progress import Track, silent
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.tokens import Tokens


@dataclass(frozen=True)
class Divergence:
    """Mean KL(base ‖ edited) in nats over n prompts; `sequence` over up to `tokens` tokens of each."""

    first_token: float
    sequence: float
    n: int
    tokens: int

    def to_json(self) -> dict[str, Any]:
        """As it stands in results.json."""
        return {
            "kl_first_token": {"value": self.first_token, "n": self.n},
            "kl_sequence": {"value": self.sequence, "n": self.n, "tokens": self.tokens},
        }


@dataclass(frozen=True)
class Moved:
    """What one pass over base continuations found for several candidates."""

    divergences: tuple[Divergence, ...]
    unchanged: Bool[Tensor, "candidate n"]
    """Where the whole response stays what the base says."""
    first_token: Float[Tensor, "candidate n"]
    """KL(base ‖ edited) of every prompt in nats, at the first token of the response."""
    sequence: Float[Tensor, "candidate n"]
    """The same, averaged over the tokens of the base's continuation."""


class BaseContinuations:
    """The base's own continuations with its log-probabilities along their first k tokens, computed once.

    Memory: n · k · vocabulary · 4 bytes on the CPU (1 GB for 100 prompts, 16 tokens and a vocabulary of 150,000).
    """

    def __init__(
        self,
        model: Model,
        rows: Sequence[Tokens],
        responses: Sequence[Response],
        k: int,
        batch_size: int,
    ) -> None:
        """Run the unedited `model` (no hooks may be on) over prompts `rows` and its own `responses`."""
        self._model, self._k, self._batch_size = model, k, batch_size
        longest = max(len(response.tokens) for response in responses)
        self._whole = force(rows, [response.tokens for response in responses], max(longest, k), model.pad_id)
        self._forced = self._whole.beginning(k)
        self._base: Float[Tensor, "n k vocab"] = torch.zeros(len(rows), k, 0)
        Room(batch_size).over(self._forced.by_length, self._keep)

    @torch.no_grad()
    def _keep(self, part: Tensor) -> None:
        """Run the base on some rows and keep its log-probabilities."""
        found = forced_logits(self._model, self._forced.take(part)).log_softmax(-1).cpu()
        if not self._base.numel():
            self._base = found.new_zeros(len(self), self._k, found.shape[-1])
        self._base[part, : found.shape[1]] = found

    @property
    def first_log_probs(self) -> Float[Tensor, "n vocab"]:
        """The base's, of the first token."""
        return self._base[:, 0]

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self._base)

    def from_layer(self, layer: int) -> BaseContinuations:
        """The same, run from `layer` on: for edits that leave the layers below alone. No hooks may be on.

        Memory: n · pos · d_model values of the model's dtype, where it runs.
        """
        found = copy(self)
        found._whole = entered(self._model, self._whole, layer, self._batch_size)
        found._forced = found._whole.beginning(self._k)
        return found

    def kl(self, rows: Int[Tensor, "n"], candidates: int = 1) -> Float[Tensor, "candidate n"]:
        """KL(base ‖ edited) of these prompts, averaged over their tokens; differentiable.

        The batch holds the prompts once for every candidate, candidate by candidate.
        """
        forced = self._forced.take(rows, candidates)
        kl = self._per_token(forced_logits(self._model, forced), rows)
        real = forced.real[: len(rows)].to(kl)
        return (kl * real).sum(-1) / real.sum(-1)

    def divergence(self, track: Track = silent) -> Divergence:
        """KL(base ‖ the model as it is now, under the hooks that are on)."""
        return self.moved(BatchCandidates(), 1, track).divergences[0]

    @torch.no_grad()
    def moved(self, assigned: BatchCandidates, candidates: int, track: Track = silent) -> Moved:
        """Divergence and unchanged responses of every candidate that the hooks hold."""
        n = len(self)
        first, sequence = torch.zeros(candidates, n), torch.zeros(candidates, n)
        unchanged = torch.zeros(candidates, n, dtype=torch.bool)

        def measure(part: Tensor) -> None:
            forced = self._whole.take(part, candidates)
            assigned.candidates = torch.arange(candidates).repeat_interleave(len(part)) if candidates > 1 else None
            logits = forced_logits(self._model, forced)
            kl = self._per_token(logits, part).cpu()
            real = forced.real[: len(part), : self._k].float()
            first[:, part], sequence[:, part] = kl[..., 0], (kl * real).sum(-1) / real.sum(-1)
            unchanged[:, part] = forced.repeated_by(logits).reshape(candidates, -1)

        room = Room(max(self._batch_size // candidates, 1))
        room.over(self._whole.by_length, measure, track, "divergence")
        means = zip(first.mean(1).tolist(), sequence.mean(1).tolist(), strict=True)
        divergences = tuple(Divergence(at_first, along, n, self._k) for at_first, along in means)
        return Moved(divergences, unchanged, first, sequence)

    def _per_token(self, logits: Tensor, rows: Tensor) -> Float[Tensor, "candidate n k"]:
        kept = logits[:, : self._k].log_softmax(-1)
        edited = kept.reshape(-1, len(rows), *kept.shape[1:])
        return kl_divergence(self._base[rows, : kept.shape[1]].to(edited).expand_as(edited), edited)


def kl_divergence(
    base: Float[Tensor, "*batch vocab"], edited: Float[Tensor, "*batch vocab"]
) -> Float[Tensor, "*batch"]:
    """Σ p_base (log p_base − log p_edited) from log-probabilities, in nats; never below 0 (rounding is cut off).

    A token that the base gives no probability at all adds nothing.
    """
    terms = base.exp() * (base - edited)
    return torch.where(base > -torch.inf, terms, torch.zeros_like(terms)).sum(-1).clamp(min=0)
