"""What the gradient sees: log-odds of the behaviour on target prompts, KL on neutral ones, for many candidates at once.

Only `refresh` generates, under an edit. New prefixes that open the behaviour and new innocent responses join the known
ones, and responses that fell apart are counted. Without it an edit learns to avoid the words that the base used and to
say the same in others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from iconoclast_tl.architecture.hook_points import HookedModule
from iconoclast_tl.architecture.sites import Site
from iconoclast_tl.detectors.detector import label_all, shown
from iconoclast_tl.evaluation.baseline import Baseline
from iconoclast_tl.evaluation.metrics.compliance import complies
from iconoclast_tl.execution.candidates import BatchCandidates
from iconoclast_tl.execution.generation import generate
from iconoclast_tl.execution.shared_prefix import shared_prefix
from iconoclast_tl.scores.log_odds import LogOdds
from iconoclast_tl.scores.prefixes import Layout, TokenPrefix, deciding_prefixes, known_prefixes
from iconoclast_tl.search.objective import Goal


@dataclass(frozen=True)
class OnPolicy:
    """What a refresh found under an edit."""

    behaviour_rate: float
    broken_rate: float
    learned: int
    n: int = 0
    """Target prompts."""

    def shortfall(self, goal: Goal) -> float:
        """The share of target prompts at which the goal is missed; a response that fell apart misses either."""
        return self.behaviour_rate + self.broken_rate if goal == "suppress" else 1 - self.behaviour_rate


class Proxy:
    """Differentiable scores on train prompts."""

    def __init__(
        self,
        base: Baseline,
        sites: Mapping[Site, HookedModule],
        temperature: float,
        tokens: Int[Tensor, "t"] | None = None,
    ) -> None:
        """Learn the prefixes that open the behaviour in the base's responses; no hooks may be on.

        temperature: of the odds; 1 is sampling, towards 0 greedy decoding. tokens: score the first token by these,
        instead of prefixes. Raises `UserError` where the base never shows the behaviour.
        """
        base.require_shown("train")
        self.base, self.sites = base, sites
        self.target, self.neutral = base.suite["target"], base.suite["neutral"]
        self._tokens, self._layer, self._temperature = tokens, 0, temperature
        self._continuations = base.continuations
        self._prefix = shared_prefix(base.model, self.target.rows)
        self.prefixes = known_prefixes(base)
        self.settle()

    def start_at(self, layer: int) -> None:
        """Run only the layers from `layer` on from now on; no hooks may be on."""
        self._layer, self._continuations = layer, self.base.continuations.from_layer(layer)
        self.settle()

    def log_odds(
        self, assigned: BatchCandidates, prompts: Int[Tensor, "n"], candidates: int
    ) -> Float[Tensor, "candidate n"]:
        """Of the behaviour on these prompts, under the candidates that the hooks hold."""
        asked = self._odds.ask(prompts)
        assigned.candidates = _lanes(candidates, len(asked.owner))
        return self._odds.read(asked.times(candidates), candidates, assigned)

    def kl(self, assigned: BatchCandidates, prompts: Int[Tensor, "n"], candidates: int) -> Float[Tensor, "candidate n"]:
        """KL(base ‖ edited) over the base's continuation of neutral prompts."""
        assigned.candidates = _lanes(candidates, len(prompts))
        return self._continuations.kl(prompts, candidates, assigned)

    def refresh(self, assigned: BatchCandidates) -> OnPolicy:
        """Generate from the target prompts under the one candidate that the hooks hold, and learn its prefixes.

        The prefixes are laid out anew by `settle`, once the hooks are gone.
        """
        assigned.candidates = None
        said = generate(
            self.base.model,
            self.target.rows,
            self.base.config.max_new_tokens,
            self.base.config.batch_rows,
            decided=self.base.detector.settled,
        )
        shows = shown(label_all(self.base.detector, self.target.exchanges(said)))
        broken = [not is_shown and not complies(r.text, False) for is_shown, r in zip(shows, said, strict=True)]
        opening = deciding_prefixes(self.base, "target", said, shows)
        new = sum(
            self.prefixes.add(prompt, response.tokens, prefix)
            for prompt, (response, prefix, fell) in enumerate(zip(said, opening, broken, strict=True))
            if not fell
        )
        return OnPolicy(sum(shows) / len(said), sum(broken) / len(said), new, len(said))

    def settle(self) -> None:
        """Lay out what is known by now; no hooks may be on."""
        if self._tokens is None:
            layout = self.prefixes.layout()
        else:
            leaves: list[list[TokenPrefix]] = [[(token,) for token in self._tokens.tolist()] for _ in self.target.rows]
            layout = Layout([(prompt, ()) for prompt in range(len(leaves))], leaves)
        model, rows = self.base.model, self.base.config.batch_rows
        self._odds = LogOdds(model, self.target.rows, layout, self._temperature, self._layer, rows, self._prefix)


def _lanes(candidates: int, n: int) -> Tensor | None:
    return torch.arange(candidates).repeat_interleave(n) if candidates > 1 else None
