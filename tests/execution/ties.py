"""Greedy text is the same on every processor only where no choice in it is a near tie."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from iconoclast_tl.models.model import Model

CLEAR = 1e-4
"""Of logits of size 10, whose float32 rounding moves by 2e-5 from one batch shape or processor to another."""


@contextmanager
def without_ties(model: Model) -> Iterator[None]:
    """Around generation: at every step the likeliest token's logit lies more than `CLEAR` above the next one's."""
    gaps: list[float] = []

    def measure(module: Any, args: Any, output: Any) -> None:
        best, second = output.logits[:, -1].float().topk(2, -1).values.T
        gaps.append(float((best - second).min()))

    handle = model.hf.register_forward_hook(measure)
    try:
        yield
    finally:
        handle.remove()
    assert gaps
    assert min(gaps) > CLEAR, f"a near tie: two logits {min(gaps):.1e} apart; take another edit or other prompts"
