"""Token passes: the unit in which work on a model is counted, whatever the processor.

One position of one row that goes through all decoder layers forward is one token pass; back through all of them is
another. A pass that starts at a later layer counts the share of layers that it runs. Padding counts, since it is
computed. The head is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from iconoclast_tl.architecture.layers import decoder_layers


@dataclass
class TokenPasses:
    """What was counted, in positions times layers."""

    n_layers: int
    forward_steps: int = 0
    backward_steps: int = 0

    @property
    def forward(self) -> float:
        """Token passes forward."""
        return self.forward_steps / self.n_layers

    @property
    def backward(self) -> float:
        """Token passes back."""
        return self.backward_steps / self.n_layers

    def to_json(self) -> dict[str, int]:
        """As results.json has it: whole token passes."""
        return {"forward": round(self.forward), "backward": round(self.backward)}


@contextmanager
def counted(hf: nn.Module) -> Iterator[TokenPasses]:
    """Count what goes through the layers of a Hugging Face model until the block ends."""
    layers = decoder_layers(hf)
    passes = TokenPasses(len(layers))

    def count(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if getattr(module.forward, "hands_through", False):  # `resumption.starting_at` skips it
            return
        states: Tensor = output[0] if isinstance(output, tuple) else output
        steps = states.shape[:-1].numel()
        passes.forward_steps += steps
        if states.requires_grad:
            states.register_hook(lambda gradient: _add_backward(passes, steps))  # type: ignore[no-untyped-call]

    handles = [layer.register_forward_hook(count, with_kwargs=True) for layer in layers]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


def _add_backward(passes: TokenPasses, steps: int) -> None:
    passes.backward_steps += steps
