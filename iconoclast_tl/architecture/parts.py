"""Parts of writers by name: a routed expert, an attention head or a neuron as `layer.number`, such as `2.0`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from iconoclast_tl.architecture.sites import Component
from iconoclast_tl.architecture.writers import known_writers
from iconoclast_tl.foundation.errors import UserError


def routed_experts(hf: Any) -> dict[int, int]:
    """Layer → how many experts its router chooses among, where they are fused in one module and can be told apart."""
    writers = known_writers(hf).items()
    return {site.layer: writer.n_experts for site, writer in writers if writer.experts and writer.n_experts}


def query_heads(hf: Any) -> dict[int, int]:
    """Layer → its heads. What the output projection reads is indexed by query heads, under grouped queries too."""
    n_heads = int(hf.config.get_text_config().num_attention_heads)
    return {layer: n_heads for layer, width in read_widths(hf, "attn_out").items() if width % n_heads == 0}


def every_head(hf: Any) -> Float[Tensor, "layer head"]:
    """1 for every head; `UserError` where those of a layer cannot be told apart."""
    heads, n_layers = query_heads(hf), hf.config.get_text_config().num_hidden_layers
    if len(heads) != n_layers:
        raise UserError(
            f"the heads of {type(hf).__name__} cannot be told apart",
            got=f"{len(heads)} of {n_layers} layers with an output projection of as many equal blocks as heads",
            mend="pass --profile free",
        )
    return torch.ones(n_layers, max(heads.values()))


def neurons(hf: Any) -> dict[int, int]:
    """Layer → the width of its MLP, where it is dense."""
    return read_widths(hf, "mlp_out")


def expert_factors(chosen: Sequence[str], hf: Any) -> Float[Tensor, "layer expert"]:
    """1 for the experts that are named, 0 for all other routed experts; `UserError` where there is no such one."""
    return _factors(chosen, routed_experts(hf), hf, "expert")


def head_factors(chosen: Sequence[str], hf: Any) -> Float[Tensor, "layer head"]:
    """The same for attention heads."""
    return _factors(chosen, query_heads(hf), hf, "head")


def neuron_factors(chosen: Sequence[str], hf: Any) -> Float[Tensor, "layer neuron"]:
    """The same for neurons of dense MLPs."""
    return _factors(chosen, neurons(hf), hf, "neuron")


def read_widths(hf: Any, component: Component) -> dict[int, int]:
    """Layer → d_in of its writer, where that is one linear, quantised or not."""
    found = {}
    for site, writer in known_writers(hf).items():
        if site.component == component and writer.is_dense:
            (matrix,) = writer.matrices
            shape = hf.get_parameter(matrix.path).shape
            stored = shape[0] if matrix.transposed else shape[-1]  # of 4-bit weights, no more than how they are packed
            found[site.layer] = int(getattr(hf.get_submodule(matrix.module), "in_features", stored))
    return found


def _factors(chosen: Sequence[str], there: Mapping[int, int], hf: Any, kind: str) -> Float[Tensor, "layer part"]:
    if not there:
        raise UserError(
            f"{type(hf).__name__} has no {kind}s that can be told apart",
            got=f"edit.{kind}s {', '.join(chosen)}",
            mend=f"leave edit.{kind}s unset",
        )
    factors = torch.zeros(hf.config.get_text_config().num_hidden_layers, max(there.values()))
    for name in chosen:
        layer, number = _parse(name, kind)
        if not 0 <= number < there.get(layer, 0):
            some = ", ".join(f"{layer}.0 to {layer}.{n - 1}" for layer, n in list(there.items())[:3])
            raise UserError(f"there is no {kind} {name}", want=f"layer.{kind}: {some}{' …' if len(there) > 3 else ''}")
        factors[layer, number] = 1.0
    return factors


def _parse(name: str, kind: str) -> tuple[int, int]:
    layer, _, number = name.partition(".")
    try:
        return int(layer), int(number)
    except ValueError as error:
        raise UserError(f"{name!r} names no {kind}", want=f"layer.{kind}, such as 2.0") from error
