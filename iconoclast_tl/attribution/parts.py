"""The parts that write into the residual stream, by name: the embedding, every head, every MLP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from iconoclast_tl.models.parts import query_heads
from iconoclast_tl.models.sites import Site
from iconoclast_tl.models.writers import known_writers

PartKind = Literal["embed", "head", "attn", "mlp", "bias"]


@dataclass(frozen=True, order=True)
class Part:
    """One part. `attn` is a layer's attention where its heads cannot be told apart; `bias` is no part of any head: an
    attention's own bias, or (layer L) the constants after the last layer.
    """

    layer: int
    component: PartKind
    head: int | None = None

    def __str__(self) -> str:
        """Such as `L3H2`, `L3 MLP`, `embed`."""
        names = {"head": f"L{self.layer}H{self.head}", "mlp": f"L{self.layer} MLP", "attn": f"L{self.layer} attention"}
        return {**names, "embed": "embed", "bias": f"L{self.layer} bias"}[self.component]

    @property
    def site(self) -> Site:
        """Where it is edited."""
        if self.component == "embed":
            return Site(0, "resid_pre")
        return Site(self.layer, "mlp_out" if self.component == "mlp" else "attn_out")


def model_parts(hf: Any) -> list[Part]:
    """Every part that can be edited, layer by layer: embedding, heads, MLPs. Biases are none of them."""
    heads, found = query_heads(hf), [Part(0, "embed")]
    for site in sorted(known_writers(hf)):
        if site.component == "mlp_out":
            found.append(Part(site.layer, "mlp"))
        elif site.layer in heads:
            found += [Part(site.layer, "head", head) for head in range(heads[site.layer])]
        else:
            found.append(Part(site.layer, "attn"))
    return found


def by_layer(parts: Sequence[Part]) -> dict[int, list[Part]]:
    """Layer → its parts."""
    found: dict[int, list[Part]] = {}
    for part in parts:
        found.setdefault(part.layer, []).append(part)
    return found
