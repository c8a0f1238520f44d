"""Sites: places of the network, and what TransformerLens calls them.

A *site* is (layer, component). `attn_out` and `mlp_out` are what `o_proj` and `down_proj` write, before any post-norm:
the tensors that a weight edit of those matrices changes. `resid_pre` is the residual stream that enters a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Component = Literal["attn_out", "mlp_out", "resid_pre"]
WRITERS: Final[tuple[Component, Component]] = ("attn_out", "mlp_out")
"""The components that an edit of weights can change."""


@dataclass(frozen=True, order=True)
class Site:
    """One place of the network: a layer and a component."""

    layer: int
    component: Component

    def __str__(self) -> str:
        """Such as `3.attn_out`; the key of this site's tensors in files."""
        return f"{self.layer}.{self.component}"


def hook_name(site: Site) -> str:
    """TransformerLens' name of a site.

    `attn.hook_out` and `mlp.hook_out` are what the writers write; `hook_attn_out` and `hook_mlp_out` are *after* the
    post-norm on models that have one (Gemma 2 and 3, OLMo 2 and 3).
    """
    names = {"attn_out": "attn.hook_out", "mlp_out": "mlp.hook_out", "resid_pre": "hook_resid_pre"}
    return f"blocks.{site.layer}.{names[site.component]}"


def read_hook_name(site: Site) -> str:
    """TransformerLens' name of what the linear of a writer reads: the heads' outputs side by side, or the neurons."""
    return f"blocks.{site.layer}.{'attn.hook_z' if site.component == 'attn_out' else 'mlp.hook_post'}"


def residual_hook_names(n_layers: int) -> list[str]:
    """The L+1 residual points: `resid_pre` of every layer, and the last layer's `resid_post`, before the final norm."""
    points = [hook_name(Site(layer, "resid_pre")) for layer in range(n_layers)]
    return [*points, f"blocks.{n_layers - 1}.hook_resid_post"]
