"""The edit under which parts are attributed, taken apart: for every part its direction, centre and strength.

    y' = y − Σ_p λ_p Σ_k v_k (v_kᵀ y_p − c_pk)

with y_p what the part p writes. Every part has a strength of its own, so that one batch can take away one part in each
row, and a gradient knows them all.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from iconoclast_tl.architecture.parts import query_heads
from iconoclast_tl.architecture.sites import Component, Site
from iconoclast_tl.attribution.parts import Part, model_parts
from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.edits.ground import Ground
from iconoclast_tl.edits.updates import SiteUpdate, Updates, edit_updates
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.model import Model


@dataclass(frozen=True)
class Subject:
    """An edit taken apart: every part's directions and centres at strength 1, and its strength in the edit."""

    parts: tuple[Part, ...]
    """The parts that can be edited."""
    updates: Mapping[Site, SiteUpdate]
    strengths: Mapping[Site, Float[Tensor, "k *part"]]
    """The strengths of the edit itself; 0 where it leaves a part alone."""
    edit: Edit
    """The same directions and centres at strength 1 everywhere."""

    def where(self, part: Part) -> tuple[Site, int | None]:
        """The site of a part, and its index among the site's parts; None where the part is the whole site."""
        return part.site, part.head

    def limited(self, parts: Collection[Part]) -> Subject:
        """The same with these parts only; the strengths of the edit stay as they are."""
        return replace(self, parts=tuple(part for part in self.parts if part in set(parts)))

    def at_share(self, share: float) -> Updates:
        """This share of the edit's strengths everywhere."""
        if share == 0:
            return Updates({}, {})
        return Updates(self.updates, {site: share * values[None] for site, values in self.strengths.items()})

    def candidates(self, groups: Sequence[Collection[Part]]) -> Updates:
        """For each group a candidate in which its parts have strength 1, and all others none."""
        of_site = {site: values.new_zeros(len(groups), *values.shape) for site, values in self.strengths.items()}
        for number, group in enumerate(groups):
            for part in group:
                site, head = self.where(part)
                of_site[site][number, ..., slice(None) if head is None else head] = 1.0
        return Updates(self.updates, of_site)

    def strength(self, part: Part) -> float:
        """The strength that the edit gives a part: the largest in magnitude over its directions."""
        site, head = self.where(part)
        values = self.strengths[site] if head is None else self.strengths[site][:, head]
        return float(values[values.abs().argmax()])

    def only(self, parts: Sequence[Part], strength: float = 1.0) -> Edit:
        """An edit of these parts alone, all at one strength."""
        edit = self.edit
        strengths = {name: torch.zeros_like(values) for name, values in edit.strengths.items()}
        factors = {name: torch.zeros_like(values) for name, values in edit.parts.items()}
        for part in parts:
            site, head = self.where(part)
            strengths[site.component][:, site.layer] = strength
            if head is not None:
                factors[site.component][site.layer, head] = 1.0
        return replace(edit, strengths=strengths, parts=factors)


def make_subject(edit: Edit, ground: Ground, model: Model) -> Subject:
    """Take an edit of `model` apart into heads, MLPs and the embedding.

    ground: the neutral means, which an affine edit needs. Raises `UserError` for an edit that does not fall into parts:
    one with row normalisation, of the whole stream, with an addition or kept norms, of single neurons or experts.
    """
    if edit.row_normalization != "none":
        raise UserError(
            "an edit with row normalisation does not fall into heads",
            got=f"row normalisation {edit.row_normalization}",
            mend="name a direction by --point, or search with --set edit.row_normalization=none",
        )
    if edit.scope == "stream":
        raise UserError(
            "an edit of the whole stream does not fall into parts", got="scope stream", mend="pass edit.scope=writers"
        )
    if edit.shifted or edit.keep_norm:
        raise UserError(
            "an edit that adds a constant or keeps norms does not fall into parts",
            got=f"an addition at {edit.shifted[0]}" if edit.shifted else "edit.keep_norm",
            want="an ablation, which is the sum of what is taken from every part",
            mend="name a direction by --point, or leave edit.keep_norm unset",
        )
    if edit.experts is not None or "mlp_out" in edit.parts:
        kind = "routed experts" if edit.experts is not None else "neurons"
        raise UserError(
            f"an edit of single {kind} does not fall into heads and whole MLPs",
            got=f"strengths of {kind}",
            mend="name a direction by --point, which is then ablated everywhere",
        )
    sites = model.sites
    parts = [part for part in model_parts(model.hf) if part.site in sites]
    unit = _at_strength_one(edit, ground, model, {part.site.component for part in parts})
    made = edit_updates(unit, sites)
    kept = tuple(part for part in parts if part.site in made.at)
    strengths = {site: _given(edit, unit, site) for site in made.at}
    return Subject(kept, made.at, strengths, unit)


def _at_strength_one(edit: Edit, ground: Ground, model: Model, components: set[Component]) -> Edit:
    """The same directions everywhere, every head by itself, the embedding included."""
    k, n_layers, _ = edit.directions.shape
    heads = query_heads(model.hf)
    factors: dict[Component, Tensor] = {}
    if "attn_out" in components and len(heads) == n_layers:
        factors["attn_out"] = torch.ones(n_layers, max(heads.values()))
    strengths: dict[Component, Tensor] = {name: torch.ones(k, n_layers) for name in sorted(components)}
    if "resid_pre" in strengths:
        strengths["resid_pre"][:, 1:] = 0
    unit = replace(edit, strengths=strengths, centres={}, parts=factors, experts=None)
    if not edit.is_affine:
        return unit
    whole = replace(ground, parts=factors, sites=model.sites)
    vectors = {name: torch.stack([unit.vectors(Site(i, name)) for i in range(n_layers)], dim=1) for name in strengths}
    return replace(unit, centres={name: whole.centres(name, seen) for name, seen in vectors.items()})


def _given(edit: Edit, unit: Edit, site: Site) -> Float[Tensor, "k *part"]:
    """The strengths of an edit at a site, for every part of it, of the directions that its update has."""
    used = unit.vectors(site).any(-1)
    given = edit.strengths.get(site.component)
    strengths = torch.zeros(int(used.sum())) if given is None else given[used, site.layer]
    if site.component not in unit.parts:
        return strengths
    own = edit.parts.get(site.component)
    factors = torch.ones_like(unit.parts[site.component][site.layer]) if own is None else own[site.layer]
    return strengths[:, None] * factors
