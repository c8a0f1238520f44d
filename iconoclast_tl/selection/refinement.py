"""Refinement: further directions, each estimated where the edit by those before leaves the behaviour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from iconoclast_tl.activations.collect import collect_residuals
from iconoclast_tl.architecture.sites import WRITERS
from iconoclast_tl.directions.config import DirectionConfig
from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.directions.estimate import estimate_directions
from iconoclast_tl.directions.geometry import orthonormalize
from iconoclast_tl.edits.config import EditConfig
from iconoclast_tl.edits.edit import Edit, make_edit
from iconoclast_tl.edits.ground import Ground
from iconoclast_tl.edits.hooks import preview
from iconoclast_tl.edits.profiles import uniform
from iconoclast_tl.evaluation.baseline import Baseline
from iconoclast_tl.evaluation.suite import Questions
from iconoclast_tl.foundation.progress import Say, unheard
from iconoclast_tl.prompts.tokens import Tokens
from iconoclast_tl.scores.first_tokens import first_log_probs
from iconoclast_tl.scores.odds import token_log_odds

LEAST_LEFT = 10
"""Target prompts that must still begin the behaviour for a further direction."""

Vectors = Float[Tensor, "k point d_model"]
Weights = Float[Tensor, "k point"]


def refine(
    directions: Directions,
    train: Baseline,
    val: Baseline,
    tokens: Int[Tensor, "t"],
    config: DirectionConfig,
    *,
    temperature: float,
    shown: Bool[Tensor, "rows"] | None = None,
    batch_size: int | None = None,
    say: Say = unheard,
) -> Directions:
    """The directions with at most `config.refine` further ones.

    Each is estimated on residuals of the model that is edited by those before it (λ = 1 in all layers, at the best
    point): of the target train prompts that still begin the behaviour, against the neutral ones. It is kept as long as
    it closes at least `config.refine_gain` of the gap between target and neutral val prompts, in mean log-odds of the
    behaviour's first tokens at `temperature`. Nothing is left to learn from prompts that no longer show the behaviour,
    and over all prompts a difference of means is 0 by construction once it has been taken out: this is iterative
    nullspace projection (Ravfogel et al. 2004.07667) in the live model, on what is left.

    train, val: the unedited model on all train prompts and on val prompts. tokens: `selection.choose.behaviour_tokens`.
    shown: whether each train prompt's response shows the behaviour, target prompts first, for estimators that go by it.
    batch_size: of the collections under an edit; by default that of `train`.
    """
    edited = _EditedModel(train, tokens, directions.best, directions.position, config, temperature, batch_size)
    start, floor = (float(edited.log_odds(val.suite[side]).mean()) for side in ("target", "neutral"))
    vectors, weights = directions.vectors, directions.weights
    before = edited.score(val.suite["target"], vectors, weights)
    told: dict[str, object] = {"base": start, "neutral": floor, "first": before}
    rounds: list[dict[str, float]] = []
    for number in range(1, config.refine + 1):
        further, n_left = edited.further(vectors, weights, shown)
        if further is None:
            say(f"refinement {number}: only {n_left} target train prompts still begin the behaviour; it ends here")
            break
        longer = orthonormalize(torch.cat([vectors, further[None]]))
        more = torch.cat([weights, longer[-1:].any(-1).float()])
        after = edited.score(val.suite["target"], longer, more)
        gain = (before - after) / max(start - floor, 1e-9)
        rounds.append({"prompts": n_left, "log_odds": after, "gain": gain})
        keeps = gain >= config.refine_gain
        say(
            f"refinement {number}, on {n_left} prompts: log-odds {before:.2f} → {after:.2f}, {gain:.0%} of the gap: "
            f"{'kept' if keeps else 'not kept; it ends here'}"
        )
        if not keeps:
            break
        vectors, weights, before = longer, more, after
    about = {**directions.provenance, "refinement": {**told, "rounds": rounds}}
    return replace(directions, vectors=vectors, weights=weights, provenance=about)


@dataclass(frozen=True)
class _EditedModel:
    """Runs the model, unedited or with some directions ablated at both writers of every layer."""

    train: Baseline
    tokens: Int[Tensor, "t"]
    point: int
    position: int
    config: DirectionConfig
    temperature: float
    batch_size: int | None

    def log_odds(self, questions: Questions) -> Float[Tensor, "n"]:
        """Log-odds of the behaviour's first tokens, prompt by prompt, under the hooks that are on."""
        log_probs = first_log_probs(self.train.model, questions, self.train.config.batch_rows)
        return token_log_odds(log_probs / self.temperature, self.tokens)

    def score(self, questions: Questions, vectors: Vectors, weights: Weights) -> float:
        """Mean log-odds under the edit."""
        with preview(self._edit(vectors, weights), self.train.model.sites):
            return float(self.log_odds(questions).mean())

    def further(
        self, vectors: Vectors, weights: Weights, shown: Bool[Tensor, "rows"] | None
    ) -> tuple[Float[Tensor, "point d_model"] | None, int]:
        """The main directions of what the edit leaves, and the number of target prompts left; None for too few."""
        target, neutral = self.train.suite["target"], self.train.suite["neutral"]
        with preview(self._edit(vectors, weights), self.train.model.sites):
            left = (self.log_odds(target) > 0).nonzero()[:, 0].tolist()
            if len(left) < LEAST_LEFT:
                return None, len(left)
            b, g = self._residuals([target.rows[row] for row in left]), self._residuals(neutral.rows)
        if shown is not None:
            shown = torch.cat([torch.ones(len(left), dtype=torch.bool), shown[len(target.rows) :]])
        return estimate_directions(b, g, self.config, shown, self.train.track).vectors[0], len(left)

    def _edit(self, vectors: Vectors, weights: Weights) -> Edit:
        model = self.train.model
        ones = {component: uniform(1.0, range(model.n_layers), model.n_layers) for component in WRITERS}
        here = vectors[:, self.point, None].expand(-1, model.n_layers, -1)
        shares = weights[:, self.point, None].expand(-1, model.n_layers)
        config = EditConfig(attention_only=model.attention_only)
        return make_edit(here, ones, config, Ground(gains=model.gains), shares)

    def _residuals(self, rows: Sequence[Tokens]) -> Float[Tensor, "n point d_model"]:
        model = self.train.model
        found = torch.empty(len(rows), model.n_layers + 1, model.d_model)

        def keep(where: Sequence[int], residuals: Tensor) -> None:
            found[list(where)] = residuals[:, -self.position - 1]

        batch_size = self.batch_size or self.train.config.batch_rows
        collect_residuals(model, None, rows, keep, -self.position, batch_size, self.train.track, "collect, edited")
        return found
