"""Start a forward pass at a layer: what lies below the first edited site is the same for every strength.

The Hugging Face model runs as it is, masks and rotary embeddings included, but the layers below hand their input
through, and the layer at which to start reads the kept states in its place. `resumes` compares the two before they are
relied on; an architecture whose layers pass on more than the stream then simply runs whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from iconoclast_tl.architecture.layers import decoder_layers
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.tokens import TokenBatch


@dataclass(frozen=True)
class Entering:
    """What enters a layer, for every row and position of a batch."""

    layer: int
    states: Float[Tensor, "batch pos d_model"]

    def take(self, rows: Tensor, columns: slice) -> Entering:
        """These rows and columns."""
        return Entering(self.layer, self.states[rows.to(self.states.device), columns])


class _Reached(Exception):  # noqa: N818 - no error: what ends a pass that has nothing left to do
    """Carries what enters a layer out of the forward pass."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


@torch.no_grad()
def entering(model: Model, batch: TokenBatch, layer: int, cache: Any = None) -> Entering:
    """Run a batch up to `layer` and keep what enters that layer. cache: of the tokens that come before the batch's."""

    def stop(module: Any, args: Any, kwargs: Any) -> None:
        raise _Reached(
            (args[0] if args else kwargs["hidden_states"]).clone()
        )  # the values, and nothing that hangs on them

    handle = decoder_layers(model.hf)[layer].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model.hf(**model.inputs(batch), logits_to_keep=1, past_key_values=cache, use_cache=cache is not None)
    except _Reached as reached:
        return Entering(layer, reached.states)
    finally:
        handle.remove()
    raise RuntimeError(f"layer {layer} was not run")


@contextmanager
def starting_at(model: Model, kept: Entering) -> Iterator[None]:
    """Run the model from `kept.layer` on, on what was kept; everything is as before when the block ends."""
    layers = decoder_layers(model.hf)

    def pass_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states

    pass_on.hands_through = True  # type: ignore[attr-defined]  # `token_passes` does not count these layers

    def replace(module: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (kept.states, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kept.states}

    # First of the layer's hooks: an edit of what enters it comes after.
    handle = layers[kept.layer].register_forward_pre_hook(replace, with_kwargs=True, prepend=True)
    below = list(layers[: kept.layer])
    own = [layer.__dict__.get("forward") for layer in below]  # accelerate puts one there
    try:
        for layer in below:
            layer.forward = pass_on  # an attribute of the instance, in front of the class's method
        yield
    finally:
        handle.remove()
        for layer, forward in zip(below, own, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward


@torch.no_grad()
def resumes(model: Model, batch: TokenBatch, layer: int) -> bool:
    """Whether this model, started at `layer`, gives the logits that it gives as a whole.

    The same operations on the same numbers: to the bit, but for layers that are given another memory layout (1e-5 of
    the largest logit).
    """
    inputs = model.inputs(batch)
    try:
        whole = model.hf(**inputs, logits_to_keep=1, use_cache=False).logits
        with starting_at(model, entering(model, batch, layer)):
            resumed = model.hf(**inputs, logits_to_keep=1, use_cache=False).logits
    except torch.OutOfMemoryError:
        raise
    except Exception:  # a layer that passes on something else may fail in any way
        return False
    return bool((whole - resumed).abs().max() <= 1e-5 * whole.abs().max())
