"""Post-norms: architectures that normalise what a block writes before it joins the residual stream.

There (Gemma 2 and 3, OLMo 2 and 3, GLM-4) the stream receives γ ∘ y / rms(y), so that vᵀ(γ ∘ y) = (γ ∘ v)ᵀ y decides
what it gets along v: an edit of y removes v from the stream by projecting along γ ∘ v, normalised.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from iconoclast_tl.architecture.layers import decoder_layers
from iconoclast_tl.architecture.names import ArchitectureNames, child, misnamed, names_of
from iconoclast_tl.architecture.offloading import device_of
from iconoclast_tl.architecture.sites import WRITERS, Component

Gains = dict[Component, Float[Tensor, "layer d_model"]]


def post_norm_gains(hf: Any) -> Gains:
    """γ of every layer's post-norms, up to a positive factor; empty where there are none.

    It is read off what the norm makes of a vector of ones, whichever way an architecture parametrises it.
    """
    layers = decoder_layers(hf)
    width = int(hf.config.get_text_config().hidden_size)
    registered, found = names_of(hf), Gains()
    for component in WRITERS:
        norms = [post_norm(layer, component, registered) for layer in layers]
        if None in norms and (own := registered.post_norm(component)):
            index = norms.index(None)
            raise misnamed(hf, f"layer {index}", f"norm after {component}", own, layers[index])
        if all(norm is not None for norm in norms):
            found[component] = torch.stack([_gain(norm, width) for norm in norms if norm is not None])
    return found


def post_norm(layer: nn.Module, component: Component, registered: ArchitectureNames) -> nn.Module | None:
    """The norm that what a layer's attention or MLP writes passes before it is added to the stream.

    registered: what `names_of` says of the model.
    """
    if own := registered.post_norm(component):
        return next((norm for name in own if (norm := child(layer, name)) is not None), None)
    names = {
        "attn_out": ("post_self_attn_layernorm", "post_attention_layernorm"),
        "mlp_out": ("post_mlp_layernorm", "post_feedforward_layernorm"),
    }
    # `post_attention_layernorm` alone is what Llama calls the norm before its MLP.
    if not any(name in layer._modules for name in names["mlp_out"]):
        return None
    return next((layer.get_submodule(name) for name in names[component] if name in layer._modules), None)


@torch.no_grad()
def _gain(norm: nn.Module, width: int) -> Float[Tensor, "d_model"]:
    gain: Tensor = norm(torch.ones(1, width, device=device_of(norm)))[0]
    return gain.float().cpu()
