"""Routed experts by name: `layer.expert`, such as `2.0` for the first of layer 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.writers import known_writers


def routed_experts(hf: Any) -> dict[int, int]:
    """Layer → how many experts its router chooses among, where they are fused in one module and can be told apart."""
    writers = known_writers(hf).items()
    return {site.layer: writer.n_experts for site, writer in writers if writer.experts and writer.n_experts}


def expert_factors(chosen: Sequence[str], hf: Any) -> Float[Tensor, "layer expert"]:
    """1 for the experts that are named, 0 for all other routed experts.

    Raises `UserError` for a model without routed experts, and for a name that none of its experts has.
    """
    there = routed_experts(hf)
    if not there:
        raise UserError(
            f"{type(hf).__name__} has no routed experts that can be told apart",
            got=f"edit.experts {', '.join(chosen)}",
            mend="leave edit.experts unset",
        )
    n_layers = hf.config.get_text_config().num_hidden_layers
    factors = torch.zeros(n_layers, max(there.values()))
    for name in chosen:
        layer, expert = _parse(name)
        if not 0 <= expert < there.get(layer, 0):
            some = ", ".join(f"{layer}.0 to {layer}.{n - 1}" for layer, n in list(there.items())[:3])
            raise UserError(f"there is no expert {name}", want=f"layer.expert: {some}{' …' if len(there) > 3 else ''}")
        factors[layer, expert] = 1.0
    return factors


def _parse(name: str) -> tuple[int, int]:
    layer, _, expert = name.partition(".")
    try:
        return int(layer), int(expert)
    except ValueError as error:
        raise UserError(f"{name!r} names no expert", want="layer.expert, such as 2.0") from error
