"""What an edit does at one site, as one formula that every kind of edit fits, for one candidate or for many.

For candidate c, with s what the site's module writes (`output`, y) or reads (`input`, x):

    z  = y − Σ_k λ[c, k] · ( (s · R[c, k]) W[c, k] + κ[c, k] )
    y' = z + shift[c],    or (‖y‖ / ‖z‖) z + shift[c] where candidate c keeps norms

    plain and affine   s = y,  R = V,       W = V,     κ = −centre · V
    pre                s = y,  R = V D⁻¹,   W = V D,   κ = (V b − centre) V − (R · b) W      (D: row norms, b: bias)
    full               s = x,  R = A,       W = −Bᵀ,   κ = −β on the first k                  (λ is in the factors)

    heads, neurons     s = x,  R = V W ∘ λ,  W = V,     κ = Σ_p λ_p (V b / P − c_p) V         (λ_p on the columns of p)

Heads and neurons are the parts of what a linear reads; each has a strength of its own, λ[c, k, p]. Routed experts may
have strengths λ f[e]: what a mixture writes is Σ_e g_e y_e, and is linear in the weights g, so that with
s = Σ_e f[e] g_e y_e the mixture is run once more, its weights g f (plain edits only).

All but `full`, which restores row norms, are linear in λ, so that their gradient is exact. Rows of one batch may
belong to different candidates: each row then has its own R, W, κ and λ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from iconoclast_tl.architecture.hook_points import HookedModule
from iconoclast_tl.architecture.reading import of_columns, read_along
from iconoclast_tl.architecture.sites import Site
from iconoclast_tl.architecture.writers import dense_weight
from iconoclast_tl.edits.edit import Edit, SiteEdit
from iconoclast_tl.edits.factors import factors


@dataclass(frozen=True, kw_only=True)
class SiteUpdate:
    """The formula's tensors at one site; `candidate` is 1 where all candidates share them."""

    reads: Float[Tensor, "candidate k d_source"]
    writes: Float[Tensor, "candidate k d_model"]
    constants: Float[Tensor, "candidate k d_model"] | None
    """κ; None where it is zero."""
    source: Literal["output", "input"] = "output"
    experts: Float[Tensor, "candidate expert"] | None = None
    """Factors of λ at each routed expert; None where all are 1."""
    offsets: Float[Tensor, "candidate k part"] | None = None
    """V b / P − c_p where heads or neurons have strengths of their own, and R is V W without them; None elsewhere."""
    shifts: Float[Tensor, "shifted d_model"] | None = None
    """What is added, by candidate, or one for all; it has no strength. None where nothing is."""
    keep_norm: Bool[Tensor, "kept"] | None = None
    """Which candidates keep norms; None where none does."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is projected: an addition alone."""
        return not self.reads.shape[1]

    def to(self, device: torch.device) -> SiteUpdate:
        """The same on another device."""
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return SiteUpdate(**{**vars(self), **tensors})

    def with_strengths(self, strengths: Float[Tensor, "candidate k part"]) -> SiteUpdate:
        """Strengths of parts taken into R and κ, so that what is left is 1 for all; gradients reach them."""
        assert self.offsets is not None
        reads, writes = self.reads.to(strengths.dtype), self.writes.to(strengths.dtype)
        scaled = (strengths * self.offsets.to(strengths)).sum(-1, keepdim=True) * writes
        reads = reads * of_columns(strengths, reads.shape[-1])
        return SiteUpdate(
            reads=reads,
            writes=writes.expand(len(reads), -1, -1),
            constants=scaled,
            source="input",
            shifts=self.shifts,
            keep_norm=self.keep_norm,
        )


@dataclass(frozen=True)
class Updates:
    """Updates and strengths at every site that some candidate changes."""

    at: Mapping[Site, SiteUpdate]
    strengths: Mapping[Site, Float[Tensor, "candidate k *part"]]


def apply_update(
    y: Float[Tensor, "*batch d_model"],
    x: Float[Tensor, "*batch d_in"] | None,
    update: SiteUpdate,
    strengths: Float[Tensor, "candidate k *part"],
    rows: Int[Tensor, "batch"] | None = None,
    surplus: Float[Tensor, "*batch d_model"] | None = None,
) -> Float[Tensor, "*batch d_model"]:
    """The formula above; computed in float32 at least and returned in y's dtype.

    rows: for each row of the batch (y's first axis, or its first part where positions are flattened into it) its
    candidate; None where there is one candidate. surplus: of the source over y, where routed experts have strengths of
    their own: Σ_e (f[e] − 1) g_e y_e.
    """
    if update.offsets is not None:
        update, strengths = update.with_strengths(strengths), torch.ones_like(strengths[..., 0])
    source = x if update.source == "input" else y if surplus is None else y + surplus
    if rows is not None:
        rows = rows.to(y.device)  # layers may lie on several devices
        if len(y) != len(rows):  # rows and positions flattened into one axis, row by row
            rows = rows.repeat_interleave(len(y) // len(rows))
    assert source is not None  # every hook on an output gets its module's input too
    dtype = torch.promote_types(torch.promote_types(y.dtype, torch.float32), strengths.dtype)
    states, read = y.to(dtype).reshape(len(y), -1, y.shape[-1]), source.to(dtype).reshape(len(y), -1, source.shape[-1])
    per_row = strengths.to(dtype)[:1] if rows is None else strengths.to(dtype)[rows][:, None, :]
    if update.is_empty:
        result = states
    elif rows is None or len(update.reads) == len(update.writes) == 1:
        result = _shared_vectors(states, read, update, per_row)
    else:
        result = _own_vectors(states, read, update, per_row, rows)
    if update.keep_norm is not None:
        result = result * _restoring(states, result, _of_candidates(update.keep_norm[:, None], rows))
    if update.shifts is not None:
        result = result + _of_candidates(update.shifts.to(result.dtype), rows)
    return result.reshape(y.shape).to(y.dtype)


def _restoring(before: Tensor, after: Tensor, kept: Bool[Tensor, "#row 1 1"]) -> Float[Tensor, "row pos 1"]:
    """‖y‖ / ‖z‖ in the rows that keep norms, and 1 in the others and where nothing is left."""
    length = after.norm(dim=-1, keepdim=True)
    ratio = before.norm(dim=-1, keepdim=True) / length.clamp(min=torch.finfo(length.dtype).tiny)
    return torch.where(kept & (length > 0), ratio, torch.ones_like(ratio))


def _of_candidates(values: Shaped[Tensor, "candidate d"], rows: Tensor | None) -> Shaped[Tensor, "#row 1 d"]:
    """Every row's candidate's, to be broadcast over positions; one row where all share them."""
    return (values[:1] if rows is None or len(values) == 1 else values[rows])[:, None]


def _shared_vectors(states: Tensor, read: Tensor, update: SiteUpdate, strengths: Tensor) -> Tensor:
    """Candidates that differ in their strengths only: a product with R, and one pass over y that subtracts."""
    reads, writes = update.reads[0].to(states.dtype), update.writes[0].to(states.dtype)
    scaled = (read @ reads.T) * strengths
    if len(reads) == 1:  # the usual case; a product of matrices would copy y first
        result = torch.addcmul(states, scaled, writes, value=-1)
    else:
        flat = torch.addmm(states.reshape(-1, states.shape[-1]), scaled.reshape(-1, len(reads)), writes, alpha=-1)
        result = flat.reshape(states.shape)
    return result if update.constants is None else result - strengths @ update.constants[0].to(states.dtype)


def _own_vectors(states: Tensor, read: Tensor, update: SiteUpdate, strengths: Tensor, rows: Tensor) -> Tensor:
    """Candidates with vectors of their own: each row's are gathered, and one product is made a row."""
    reads, writes = _of_rows(update.reads, rows, states), _of_rows(update.writes, rows, states)
    scaled = torch.bmm(read, reads.transpose(1, 2)) * strengths
    result = torch.baddbmm(states, scaled, writes, alpha=-1)
    return result if update.constants is None else result - strengths @ _of_rows(update.constants, rows, states)


def _of_rows(vectors: Float[Tensor, "candidate k d"], rows: Tensor, like: Tensor) -> Float[Tensor, "row k d"]:
    return vectors.to(like.dtype).expand(len(rows), -1, -1) if len(vectors) == 1 else vectors.to(like.dtype)[rows]


def linear_update(
    directions: Float[Tensor, "k d_model"],
    centres: Float[Tensor, "k"],
    row_normalization: Literal["none", "pre"],
    module: nn.Module | None,
) -> SiteUpdate:
    """The update of a plain, affine or `pre` edit: everything of it but its strengths.

    `pre` needs the linear `module` of the site, for its row norms and bias.
    """
    v = directions
    if row_normalization == "none":
        constants = -centres[:, None] * v
        return SiteUpdate(reads=v[None], writes=v[None], constants=constants[None] if bool(centres.any()) else None)
    if module is None:
        raise ValueError("row normalisation needs the linear module of the site")
    weight, bias = dense_weight(module)
    wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    v, centres = v.to(wide), centres.to(wide)
    norms = wide.norm(dim=1)
    inverse = torch.where(norms > 0, 1 / norms.clamp(min=torch.finfo(wide.dtype).tiny), torch.zeros_like(norms))
    reads, writes = v * inverse, v * norms
    b = bias.detach().to(wide) if bias is not None else torch.zeros_like(norms)
    constants = (v @ b - centres)[:, None] * v - (reads @ b)[:, None] * writes
    return SiteUpdate(
        reads=reads[None], writes=writes[None], constants=constants[None] if bool(constants.any()) else None
    )


def part_update(
    directions: Float[Tensor, "k d_model"], centres: Float[Tensor, "k part"], site: Site, module: nn.Module
) -> SiteUpdate:
    """The update of heads or neurons: everything of it but their strengths. ValueError where there is no linear."""
    if not hasattr(module, "weight"):
        raise ValueError(f"single heads or neurons at {site} need the linear that writes there")
    read = read_along(module, directions)
    offsets = read.bias[:, None] / centres.shape[-1] - centres.to(read.bias)
    return SiteUpdate(
        reads=read.weight[None],
        writes=directions.to(read.weight)[None],
        constants=None,
        source="input",
        experts=None,
        offsets=offsets[None],
    )


def edit_updates(edit: Edit, sites: Mapping[Site, HookedModule]) -> Updates:
    """One edit as updates at its sites.

    Raises `ValueError` where routed experts have strengths of their own and `sites` has none (as on a bridge).
    """
    if edit.experts is not None and all(where.experts is None for where in sites.values()):
        raise ValueError("strengths of single experts need sites of the Hugging Face model (`hf_sites`)")
    at, strengths = {}, {}
    for site in edit.sites:
        at[site], strengths[site] = _site_update(edit, site, sites[site])
    return Updates(at, strengths)


def stack_updates(candidates: Sequence[Updates]) -> Updates:
    """Many edits as one: candidate c of the result is `candidates[c]`; strengths are 0 where it has no such site."""
    found = sorted({site for candidate in candidates for site in candidate.at})
    at, strengths = {}, {}
    for site in found:
        at[site], strengths[site] = _stack_site([(c.at.get(site), c.strengths.get(site)) for c in candidates])
    return Updates(at, strengths)


def _site_update(edit: Edit, site: Site, where: HookedModule) -> tuple[SiteUpdate, Tensor]:
    at = edit.at(site)
    update, strengths = _projection(edit, at, site, where)
    shifts = None if at.shift is None else at.shift[None]
    keeps = torch.ones(1, dtype=torch.bool) if edit.keep_norm and not update.is_empty else None
    return replace(update, shifts=shifts, keep_norm=keeps), strengths


def _projection(edit: Edit, at: SiteEdit, site: Site, where: HookedModule) -> tuple[SiteUpdate, Tensor]:
    if not len(at.directions):
        return SiteUpdate(reads=at.directions[None], writes=at.directions[None], constants=None), at.strengths[None]
    if at.parts is not None:
        used = (edit.strengths[site.component][:, site.layer] != 0) & edit.vectors(site).any(-1)
        update = part_update(at.directions, edit.own_centres(site)[used], site, where.module)
        return update, (at.strengths[:, None] * at.parts)[None]
    if edit.row_normalization != "full":
        update = linear_update(at.directions, at.centres, edit.row_normalization, where.module)
        experts = None if at.experts is None or where.experts is None else at.experts[None]
        return replace(update, experts=experts), at.strengths[None]
    weight, bias = dense_weight(where.module)
    change = factors(replace(at, shift=None), weight, bias, "full", edit.rank)  # what is added stands by itself
    constants = None
    if change.bias is not None:
        constants = torch.zeros_like(change.b.T)
        constants[0] = -change.bias
    ones = torch.ones(1, change.rank, dtype=change.a.dtype, device=change.a.device)
    return SiteUpdate(
        reads=change.a[None],
        writes=-change.b.T[None],
        constants=None if constants is None else constants[None],
        source="input",
    ), ones


def _stack_site(candidates: Sequence[tuple[SiteUpdate | None, Tensor | None]]) -> tuple[SiteUpdate, Tensor]:
    given = [one if one[0] is not None and not one[0].is_empty else (None, None) for one in candidates]
    updates = [update for update, _ in candidates]
    shifts = _stack_changes([None if update is None else update.shifts for update in updates])
    keeps = _stack_changes([None if update is None else update.keep_norm for update in updates])
    if all(update is None for update, _ in given):  # additions alone
        empty, none = next((update, none) for update, none in candidates if update is not None and none is not None)
        return replace(empty, shifts=shifts, keep_norm=keeps), none.expand(len(candidates), -1)
    update, strengths = _stack_projections(given)
    return replace(update, shifts=shifts, keep_norm=keeps), strengths


def _stack_projections(candidates: Sequence[tuple[SiteUpdate | None, Tensor | None]]) -> tuple[SiteUpdate, Tensor]:
    first = next(update for update, _ in candidates if update is not None)
    updates = [first if update is None else update.to(first.reads.device) for update, _ in candidates]
    if len({(update.source, update.offsets is None) for update in updates}) > 1:
        raise ValueError("edits by what a module reads and edits by what it writes do not go into one batch")
    k = max(update.reads.shape[1] for update in updates)
    some = next(given for _, given in candidates if given is not None)
    none = some.new_zeros(1, k, *some.shape[2:])
    strengths = [none if given is None else _pad(given.to(some.device), k) for _, given in candidates]
    kappas = [torch.zeros_like(u.writes) if u.constants is None else u.constants for u in updates]
    reads = _shared(torch.cat([_pad(update.reads, k) for update in updates]))
    writes = _shared(torch.cat([_pad(update.writes, k) for update in updates]))
    constants = _shared(torch.cat([_pad(kappa, k) for kappa in kappas]))
    offsets = None
    if first.offsets is not None:
        offsets = _shared(torch.cat([_pad(u.offsets, k) for u in updates if u.offsets is not None]))
    n = max(len(reads), len(writes), len(constants), 0 if offsets is None else len(offsets))
    reads, writes, constants = (t.expand(n, -1, -1) for t in (reads, writes, constants))
    offsets = None if offsets is None else offsets.expand(n, -1, -1)
    kappa = constants if bool(constants.any()) else None
    experts = _stack_factors([update.experts for update in updates])
    return SiteUpdate(
        reads=reads, writes=writes, constants=kappa, source=first.source, experts=experts, offsets=offsets
    ), torch.cat(strengths)


def _stack_changes(values: Sequence[Tensor | None]) -> Shaped[Tensor, "candidate *d_model"] | None:
    """What is done beside a projection; zeros, or False, of candidates that do nothing of the kind."""
    some = next((value for value in values if value is not None), None)
    if some is None:
        return None
    return _shared(torch.cat([torch.zeros_like(some) if one is None else one.to(some) for one in values]))


def _stack_factors(factors: Sequence[Tensor | None]) -> Float[Tensor, "candidate part"] | None:
    given = [one for one in factors if one is not None]
    if not given:
        return None
    return _shared(torch.cat([torch.ones_like(given[0]) if one is None else one for one in factors]))


def _pad(tensor: Tensor, k: int) -> Tensor:
    """Zeros up to k on axis 1: vectors of strength 0."""
    missing = tensor.new_zeros(tensor.shape[0], k - tensor.shape[1], *tensor.shape[2:])
    return torch.cat([tensor, missing], dim=1)


def _shared(stacked: Tensor) -> Tensor:
    """One candidate in the place of many that are the same."""
    return stacked[:1] if bool((stacked == stacked[:1]).all()) else stacked
