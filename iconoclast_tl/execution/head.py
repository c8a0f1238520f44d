"""The model without its head, and the head by itself.

A vocabulary is hundreds of times as wide as what enters the head. So final states are kept in the place of logits, and
the head is run where logits are looked at. It is run by the model's own forward pass, so that what a model does to
logits afterwards (soft caps, scales) is done. `is_separate` compares the two ways before they are relied on.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from iconoclast_tl.execution.batching import is_out_of_memory
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.tokens import TokenBatch

_KNOWN: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


class _BodyOutput(tuple[Tensor]):
    """What the body of a model returns, by name or by place; all that a head hands on besides is None."""

    def __new__(cls, states: Tensor) -> _BodyOutput:
        return super().__new__(cls, (states,))

    def __getattr__(self, name: str) -> Tensor | None:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[0] if name == "last_hidden_state" else None


class _Reached(Exception):  # noqa: N818 - no error: what ends a pass in front of the head
    """Carries what enters the head out of the forward pass."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


def final_states(model: Model, inputs: dict[str, Any], k: int) -> Float[Tensor, "batch k d"]:
    """What enters the head at the last k positions; the logits themselves where the head is not separate."""
    if not is_separate(model):
        return model.hf(**inputs, logits_to_keep=k).logits  # type: ignore[no-any-return]
    return _before_head(model, inputs, k)


def head_logits(model: Model, states: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch vocab"]:
    """The logits of final states, float32, whatever hooks are on; gradients are kept."""
    if not is_separate(model):
        return states.float()
    return _head(model, states).float()


@torch.no_grad()
def is_separate(model: Model) -> bool:
    """Whether the head on final states gives the model's logits; found out once a model.

    The same product of other shapes: 1e-5 of the largest logit, or 8 roundings of the dtype where that is more.
    """
    if model.hf not in _KNOWN:
        _KNOWN[model.hf] = _agrees(model)
    return _KNOWN[model.hf]


def _agrees(model: Model) -> bool:
    ids = torch.arange(1, 7).reshape(2, 3)
    inputs: dict[str, Any] = {**model.inputs(TokenBatch((0, 1), ids, torch.ones_like(ids))), "use_cache": False}
    try:
        expected = model.hf(**inputs, logits_to_keep=2).logits
        found = _head(model, _before_head(model, inputs, 2))
    except Exception as error:  # a model of another make may fail in any way
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        return False
    tolerance = max(1e-5, 8 * torch.finfo(expected.dtype).eps)
    same = found.shape == expected.shape
    return same and bool((expected - found).abs().max() <= tolerance * expected.abs().max())


def _before_head(model: Model, inputs: dict[str, Any], k: int) -> Tensor:
    def stop(module: Any, args: Any) -> None:
        raise _Reached(args[0])

    handle = model.hf.get_output_embeddings().register_forward_pre_hook(stop)
    try:
        model.hf(**inputs, logits_to_keep=k)
    except _Reached as reached:
        return reached.states
    finally:
        handle.remove()
    raise RuntimeError("the head was not run")


def _head(model: Model, states: Tensor) -> Tensor:
    body, flat = model.hf.base_model, states.reshape(1, -1, states.shape[-1])
    own = body.__dict__.get("forward")  # accelerate puts one there
    body.forward = lambda *args, **kwargs: _BodyOutput(flat)
    try:
        ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        logits: Tensor = model.hf(input_ids=ids, use_cache=False).logits
    finally:
        del body.forward
        if own is not None:
            body.forward = own
    return logits.reshape(*states.shape[:-1], logits.shape[-1])
