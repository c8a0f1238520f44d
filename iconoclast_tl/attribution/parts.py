"""The parts that write into the residual stream, by name: the embedding, every head, every MLP."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from iconoclast_tl.architecture.parts import query_heads
from iconoclast_tl.architecture.sites import Site
from iconoclast_tl.architecture.writers import known_writers
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.model import Model

PartKind = Literal["embed", "head", "attn", "mlp", "bias"]


@dataclass(frozen=True, order=True)
class Part:
    """A part that writes into the stream.

    `attn` is a layer's attention where its heads cannot be told apart. `bias` is a constant that belongs to no head: an
    attention's bias, or, as layer L, the constants after the last layer.
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
        """The site at which the part is edited."""
        if self.component == "embed":
            return Site(0, "resid_pre")
        return Site(self.layer, "mlp_out" if self.component == "mlp" else "attn_out")


def model_parts(hf: Any) -> list[Part]:
    """Every part that can be edited, layer by layer: embedding, heads, MLPs. Biases are left out."""
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


def require_parts(named: Collection[Part | str] | None, model: Model) -> list[Part] | None:
    """The parts that are named, by themselves or as `L3H2`; None: all. `UserError` for one that is not there."""
    if named is None:
        return None
    known = {str(part): part for part in model_parts(model.hf)}
    missing = [str(one) for one in named if str(one) not in known]
    if missing or not named:
        raise UserError(
            f"there is no part {missing[0]}" if missing else "no part is named",
            want=f"some of embed, L0H0, L0 MLP and so on, {len(known)} parts in {model.n_layers} layers",
        )
    return [known[str(one)] for one in named]
