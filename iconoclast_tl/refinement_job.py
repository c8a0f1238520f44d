"""Refinement: further directions, each estimated where the edit by those before leaves the behaviour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from iconoclast_tl.activations.collect import collect_residuals
from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.directions.estimate import estimate_directions
from iconoclast_tl.directions.geometry import orthonormalize
from iconoclast_tl.directions.separation import best_point
from iconoclast_tl.edits.edit import Edit, EditConfig, make_edit
from iconoclast_tl.edits.ground import Ground
from iconoclast_tl.edits.hooks import preview
from iconoclast_tl.edits.profiles import uniform
from iconoclast_tl.evaluation.suite import Questions
from iconoclast_tl.models.sites import WRITERS
from iconoclast_tl.prompts.chat import Tokens
from iconoclast_tl.scores.first_tokens import first_log_probs
from iconoclast_tl.scores.odds import token_log_odds
from iconoclast_tl.selection_job import behaviour_tokens
from iconoclast_tl.workspace import Workspace

LEAST_LEFT = 10
"""Target prompts that must still begin the behaviour for a further direction."""

Vectors = Float[Tensor, "k point d_model"]
Weights = Float[Tensor, "k point"]


def refined(workspace: Workspace, directions: Directions, shown: Bool[Tensor, "rows"] | None) -> Directions:
    """The directions with further ones, at most `directions.refine`.

    Each is estimated on residuals of the model that is edited by those before it (λ = 1 in all layers, at the best
    point): of the target train prompts that still begin the behaviour against the neutral ones. It is kept as long as
    it closes at least `refine_gain` of the gap between target and neutral val prompts, in mean log-odds of the
    behaviour's first tokens at the search's temperature. Of prompts that no longer show the behaviour there is nothing
    left to learn, and over all of them a difference of means is 0 by construction once it has been taken out: this is
    iterative nullspace projection (Ravfogel et al. 2004.07667) in the live model, on what is left.
    """
    config, point = workspace.settings.directions, best_point(directions)
    ask = _Ask(workspace, behaviour_tokens(workspace), point, directions.position)
    val = workspace.asked("val", config.selection.prompts).suite
    start, floor = (float(ask.log_odds(val[side]).mean()) for side in ("target", "neutral"))
    vectors, weights = directions.vectors, directions.weights
    before = ask.score(val["target"], vectors, weights)
    told: dict[str, object] = {"base": start, "neutral": floor, "first": before}
    rounds: list[dict[str, float]] = []
    for number in range(1, config.refine + 1):
        further, n_left = ask.further(vectors, weights, shown)
        if further is None:
            workspace.say(f"refinement {number}: only {n_left} target train prompts begin the behaviour, no further")
            break
        longer = orthonormalize(torch.cat([vectors, further[None]]))
        more = torch.cat([weights, longer[-1:].any(-1).float()])
        after = ask.score(val["target"], longer, more)
        gain = (before - after) / max(start - floor, 1e-9)
        rounds.append({"prompts": n_left, "log_odds": after, "gain": gain})
        keeps = gain >= config.refine_gain
        workspace.say(
            f"refinement {number}, on {n_left} prompts: log-odds {before:.2f} → {after:.2f}, {gain:.0%} of the gap: "
            f"{'kept' if keeps else 'not kept, and no further'}"
        )
        if not keeps:
            break
        vectors, weights, before = longer, more, after
    about = {**directions.provenance, "refinement": {**told, "rounds": rounds}}
    return replace(directions, vectors=vectors, weights=weights, provenance=about)


@dataclass(frozen=True)
class _Ask:
    """What the model is asked, without an edit or under one."""

    workspace: Workspace
    tokens: Int[Tensor, "t"]
    point: int
    position: int

    def log_odds(self, questions: Questions) -> Float[Tensor, "n"]:
        """Of the behaviour's first tokens, prompt by prompt."""
        rows = self.workspace.rows_at_once(self.workspace.settings.evaluation.batch_size)
        log_probs = first_log_probs(self.workspace.model, questions, rows)
        return token_log_odds(log_probs / self.workspace.settings.search.gradient.temperature, self.tokens)

    def score(self, questions: Questions, vectors: Vectors, weights: Weights) -> float:
        """Mean log-odds under the edit."""
        with preview(self._edit(vectors, weights), self.workspace.sites):
            return float(self.log_odds(questions).mean())

    def further(
        self, vectors: Vectors, weights: Weights, shown: Bool[Tensor, "rows"] | None
    ) -> tuple[Float[Tensor, "point d_model"] | None, int]:
        """The main directions of what is left under the edit, and of how many prompts; None where they are too few."""
        contrast, config = self.workspace.contrast, self.workspace.settings.directions
        target, neutral = (self.workspace.questions(side.train) for side in (contrast.target, contrast.neutral))
        with preview(self._edit(vectors, weights), self.workspace.sites):
            left = (self.log_odds(target) > 0).nonzero()[:, 0].tolist()
            if len(left) < LEAST_LEFT:
                return None, len(left)
            b, g = self._residuals([target.rows[row] for row in left]), self._residuals(neutral.rows)
        if shown is not None:
            shown = torch.cat([torch.ones(len(left), dtype=torch.bool), shown[len(target.rows) :]])
        return estimate_directions(b, g, config, shown, self.workspace.track).vectors[0], len(left)

    def _edit(self, vectors: Vectors, weights: Weights) -> Edit:
        n_layers = vectors.shape[1] - 1
        ones = {component: uniform(1.0, range(n_layers), n_layers) for component in WRITERS}
        config = EditConfig(attention_only=self.workspace.settings.edit.attention_only)
        here = vectors[:, self.point, None].expand(-1, n_layers, -1)
        shares = weights[:, self.point, None].expand(-1, n_layers)
        return make_edit(here, ones, config, Ground(gains=self.workspace.gains), shares)

    def _residuals(self, rows: Sequence[Tokens]) -> Float[Tensor, "n point d_model"]:
        model = self.workspace.model
        found = torch.empty(len(rows), model.n_layers + 1, model.d_model)

        def keep(where: Sequence[int], residuals: Tensor) -> None:
            found[list(where)] = residuals[:, -self.position - 1]

        at_once = self.workspace.rows_at_once(self.workspace.settings.activations.batch_size)
        collect_residuals(model, None, rows, keep, -self.position, at_once, self.workspace.track, "collect, edited")
        return found
