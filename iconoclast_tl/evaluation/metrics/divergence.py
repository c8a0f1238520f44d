"""How far an edit moves the model's distribution on prompts that it should leave alone.

KL(base ‖ edited) over the whole vocabulary, in nats: at the first token of the response, and averaged over the base's
own greedy continuation, teacher-forced. The first token alone looks perfect while later text decays, so both are
measured, in one forward pass.

The same pass tells which responses an edit leaves as they are: where the edited model's likeliest token is the base's
at every position of the base's response, greedy decoding says the same again, and nothing need be generated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from iconoclast_tl.execution.batching import Room
from iconoclast_tl.execution.candidates import BatchCandidates
from iconoclast_tl.execution.head import head_logits
from iconoclast_tl.execution.shared_prefix import shared_prefix
from iconoclast_tl.execution.teacher_forcing import HELD, entered, force, forced_states, likeliest
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
    """Continuations of prompts, and the base's final states along their first k tokens, computed once.

    Memory: n · k · d_model values on the CPU, from which the head makes log-probabilities when they are compared; for a
    model whose head cannot be run by itself n · k · vocabulary.
    """

    def __init__(
        self,
        model: Model,
        rows: Sequence[Tokens],
        said: Sequence[Sequence[int]],
        k: int,
        batch_size: int,
    ) -> None:
        """Run the unedited `model` (no hooks may be on) over prompts `rows` and the tokens `said` after them."""
        self._model, self._k, self._batch_size = model, k, batch_size
        longest = max(len(tokens) for tokens in said)
        self._whole = force(rows, said, max(longest, k), model.pad_id, shared_prefix(model, rows))
        self._forced = self._whole.beginning(k)
        self._base: Float[Tensor, "n k d"] = torch.zeros(len(rows), k, 0)
        Room(batch_size).over(self._forced.by_length, self._keep)

    @torch.no_grad()
    def _keep(self, part: Tensor) -> None:
        """Run the base on some rows and keep its final states."""
        found = forced_states(self._model, self._forced.take(part)).cpu()
        if not self._base.numel():
            self._base = found.new_zeros(len(self), self._k, found.shape[-1])
        self._base[part, : found.shape[1]] = found

    @property
    @torch.no_grad()
    def first_log_probs(self) -> Float[Tensor, "n vocab"]:
        """The base's, of the first token."""
        return self._log_probs(self._base[:, 0]).cpu()

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

    def kl(
        self, rows: Int[Tensor, "n"], candidates: int = 1, assigned: BatchCandidates | None = None
    ) -> Float[Tensor, "candidate n"]:
        """KL(base ‖ edited) of these prompts, averaged over their tokens; differentiable.

        The batch holds the prompts once for every candidate, candidate by candidate, as `assigned` says.
        """
        forced = self._forced.take(rows, candidates)
        states = forced_states(self._model, forced, assigned, candidates)
        kl = torch.cat([kl_divergence(base, mine) for base, mine in self._log_prob_pairs(states, rows)], dim=1)
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
            states = forced_states(self._model, forced, assigned, candidates)
            pairs = self._log_prob_pairs(states[:, : self._k], part)
            found = [(kl_divergence(base, mine), mine.argmax(-1)) for base, mine in pairs]
            kl, opening = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
            repeats = torch.cat([opening.flatten(0, 1), likeliest(self._model, states[:, self._k :])], dim=1)
            kl, real = kl.cpu(), forced.real[: len(part), : self._k].float()
            first[:, part], sequence[:, part] = kl[..., 0], (kl * real).sum(-1) / real.sum(-1)
            unchanged[:, part] = forced.repeated_by(repeats).reshape(candidates, -1)

        room = Room(max(self._batch_size // candidates, 1))
        room.over(self._whole.by_length, measure, track, "divergence")
        means = zip(first.mean(1).tolist(), sequence.mean(1).tolist(), strict=True)
        divergences = tuple(Divergence(at_first, along, n, self._k) for at_first, along in means)
        return Moved(divergences, unchanged, first, sequence)

    def _log_prob_pairs(
        self, states: Float[Tensor, "row k d"], rows: Tensor
    ) -> Iterator[tuple[Float[Tensor, "candidate part k vocab"], Float[Tensor, "candidate part k vocab"]]]:
        """Base and edited, a few prompts at a time, so that few log-probabilities are held at once."""
        k = states.shape[1]
        edited = states.reshape(-1, len(rows), *states.shape[1:])
        for part in torch.split(torch.arange(len(rows)), max(HELD // max(k * len(edited), 1), 1)):
            base = self._log_probs(self._base[rows[part], :k].to(states.device)).detach()
            mine = self._log_probs(edited[:, part.to(states.device)])
            yield base.expand_as(mine), mine

    def _log_probs(self, states: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch vocab"]:
        return head_logits(self._model, states.to(self._model.device)).log_softmax(-1)


def kl_divergence(
    base: Float[Tensor, "*batch vocab"], edited: Float[Tensor, "*batch vocab"]
) -> Float[Tensor, "*batch"]:
    """Σ p_base (log p_base − log p_edited) from log-probabilities, in nats; never below 0 (rounding is cut off).

    A token that the base gives no probability at all adds nothing.
    """
    terms = base.exp() * (base - edited)
    return torch.where(base > -torch.inf, terms, torch.zeros_like(terms)).sum(-1).clamp(min=0)
