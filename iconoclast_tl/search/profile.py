"""The numbers that a gradient moves, and the strengths that they mean.

`free` and `neuron`: a number for every site (of neurons that were chosen, for `neuron`); `head`: one for every head and
every MLP; `kernel`: four a component.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from iconoclast_tl.architecture.sites import WRITERS
from iconoclast_tl.edits.profiles import kernel_strengths
from iconoclast_tl.search.config import GradientConfig
from iconoclast_tl.search.families import Strengths
from iconoclast_tl.search.objective import Goal


@dataclass(frozen=True)
class Profile:
    """How a gradient's numbers θ make strengths λ[component, layer], and where both may lie."""

    config: GradientConfig
    goal: Goal
    n_layers: int
    n_heads: int = 1
    """Rows of attention strengths: more than one where every head has its own."""

    @property
    def sign(self) -> float:
        """Of strengths that serve the goal: 1 to suppress, −1 to strengthen."""
        return 1.0 if self.goal == "suppress" else -1.0

    def start(self, n: int, strength: float = 0.5) -> Float[Tensor, "n row numbers"]:
        """This strength everywhere; as a kernel, a peak of that height over all layers."""
        if self.config.profile != "kernel":
            return strength * self.ones(n)
        height, last = strength * self.sign, max(self.n_layers - 1, 1)
        return torch.tensor([height, 0.6 * last, height, float(last)]).expand(n, len(WRITERS), 4).clone()

    def ones(self, n: int) -> Strengths:
        """Strength 1 everywhere; −1 to strengthen."""
        return torch.full((n, self.n_heads + 1, self.n_layers), self.sign)

    def strengths(self, theta: Float[Tensor, "n row numbers"], layer: int = 0) -> Strengths:
        """λ; 0 below `layer`. Gradients reach θ."""
        values = kernel_strengths(theta, self.n_layers) if self.config.profile == "kernel" else theta
        return values * (torch.arange(self.n_layers) >= layer).to(values)

    @torch.no_grad()
    def clamp_(self, theta: Float[Tensor, "n row numbers"]) -> None:
        """Bring θ back to where it may lie: strengths between 0 and the bound on the goal's side, or on both."""
        bound, both = self.config.bound, self.config.allow_negative
        low, high = (-bound if both or self.sign < 0 else 0.0), (bound if both or self.sign > 0 else 0.0)
        if self.config.profile != "kernel":
            theta.clamp_(low, high)
            return
        last = float(self.n_layers - 1)
        for number, (least, most) in enumerate([(low, high), (0.0, last), (low, high), (1.0, max(last, 1.0))]):
            theta[..., number].clamp_(least, most)
