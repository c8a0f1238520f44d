"""The `Edit`: directions v[k, layer, d_model] × strengths λ[k, layer] for each component.

At a site that writes y, a plain edit gives y' = y − Σ_k λ_k v_k (v_kᵀ y); an affine one ablates towards a centre c,
y' = y − Σ_k λ_k v_k (v_kᵀ y − c_k), with c_k = v_kᵀ(mean of y over neutral prompts). λ = 0 leaves a site alone, 1
projects v out, negative strengths amplify. Where a post-norm γ ∘ y / rms(y) stands between y and the stream, γ ∘ v_k,
orthonormalised, is in the place of v_k: that takes v_k out of the stream. Routed experts, heads and neurons may be
edited by different strengths: a head h that writes y_h by λ_k f_h, towards a centre of its own.

Beyond ablation, in this order: with `keep_norm` what is left is brought back to the length ‖y‖ at every position, and
then a site's constant `shift` is added (activation addition, `edits.addition`). Last comes what is added, so that no
projection at the same site takes any of it. `edits.hooks` turns an edit into a preview, `edits.factors` into weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from iconoclast_tl.architecture.reading import of_columns
from iconoclast_tl.architecture.sites import WRITERS, Component, Site
from iconoclast_tl.directions.geometry import orthonormalize
from iconoclast_tl.edits.config import EditConfig, RowNormalization, Scope
from iconoclast_tl.edits.ground import Ground
from iconoclast_tl.foundation.drawing import Drawn
from iconoclast_tl.foundation.errors import UserError

NOTHING = Ground()


@dataclass(frozen=True, kw_only=True)
class SiteEdit:
    """What an edit does at one site: the directions with a non-zero strength, one row each."""

    directions: Float[Tensor, "r d_model"]
    strengths: Float[Tensor, "r"]
    centres: Float[Tensor, "r"]
    """Of all that is edited: with parts, Σ_p f_p c_p."""
    experts: Float[Tensor, "expert"] | None = None
    """Factors of the strengths at each routed expert; None: all 1."""
    parts: Float[Tensor, "part"] | None = None
    """Factors of the strengths at each equal part of what the writer reads: its heads, or neurons; None: all 1."""
    shift: Float[Tensor, "d_model"] | None = None
    """Added to what is left; None: nothing."""

    @property
    def adds_constant(self) -> bool:
        """Whether it adds what depends on no token, which in weights is a bias: centres, or a shift."""
        return bool(self.centres.any()) or self.shift is not None

    def of_input(self, d_in: int) -> Float[Tensor, "d_in"] | None:
        """The factors of the parts, one for every column of W."""
        return None if self.parts is None else of_columns(self.parts, d_in)

    def of_expert(self, expert: int) -> SiteEdit:
        """The edit of what one routed expert writes."""
        if self.experts is None:
            return self
        return replace(self, strengths=self.strengths * self.experts[expert], experts=None)


@dataclass(frozen=True, repr=False, kw_only=True)
class Edit(Drawn):
    """Directions, strengths and centres for every layer; float32.

    The k directions of a layer are orthonormal (a zero vector means: no such direction there). Components without an
    entry in `strengths` or `shifts` are left alone.
    """

    directions: Float[Tensor, "k layer d_model"]
    strengths: Mapping[Component, Float[Tensor, "k layer"]]
    centres: Mapping[Component, Float[Tensor, "k layer *part"]] = field(default_factory=dict)
    """Of each part by itself where a component has parts."""
    row_normalization: RowNormalization = "none"
    rank: int = 3
    gains: Mapping[Component, Float[Tensor, "layer d_model"]] = field(default_factory=dict)
    """γ of the post-norms, where the model has them (`architecture.post_norm`)."""
    experts: Float[Tensor, "layer expert"] | None = None
    """Factors of `mlp_out`'s strengths at each routed expert, λ_e = λ · factor; None: all 1. Shared experts have λ."""
    parts: Mapping[Component, Float[Tensor, "layer part"]] = field(default_factory=dict)
    """Factors of the strengths at each equal part of what a writer reads: at each head of `attn_out` (query heads), or
    at each neuron of `mlp_out`. A bias belongs to none of them and is edited with their mean."""
    shifts: Mapping[Component, Float[Tensor, "layer d_model"]] = field(default_factory=dict)
    """Constants added at every position to what a component holds, after the projection; of a writer before any
    post-norm."""
    keep_norm: bool = False
    """Whether what a projection leaves is brought back to the length it had (a zero vector stays zero)."""

    def __post_init__(self) -> None:
        """Check shapes, finiteness and orthonormality: a wrong edit must never reach a model."""
        self._require_well_formed()
        if self.scope == "stream" and self.row_normalization != "none":
            raise UserError(
                "row normalisation acts on weights and the stream has none",
                got=f"scope stream with row normalisation {self.row_normalization}",
                mend="use --scope writers or edit.row_normalization=none",
            )
        if self.parts and self.row_normalization != "none":
            raise UserError(
                "single heads and neurons take edits without row normalisation",
                got=f"row normalisation {self.row_normalization}",
                mend="pass --set edit.row_normalization=none",
            )
        if self.keep_norm and self.row_normalization != "none":
            raise UserError(
                "norms are kept of what is written, or of the weights that write it",
                got=f"keep_norm with row normalisation {self.row_normalization}",
                mend="leave one or other out",
            )

    def _require_well_formed(self) -> None:
        """Raise `ValueError` for shapes that do not fit, numbers that are not finite, and oblique directions."""
        k, layers, width = self.directions.shape
        shapes = {name: (k, layers, *self.parts[name].shape[1:]) for name in self.centres if name in self.parts}
        for kind, named in (("strengths", self.strengths), ("centres", self.centres)):
            for name, values in named.items():
                want = (k, layers) if kind == "strengths" else shapes.get(name, (k, layers))
                if tuple(values.shape) != want:
                    raise ValueError(f"{kind} of {name}: got shape {tuple(values.shape)}, want {want}")
                if not bool(values.isfinite().all()):
                    raise ValueError(f"{kind} of {name} are not finite")
        if self.experts is not None and (len(self.experts) != layers or not bool(self.experts.isfinite().all())):
            raise ValueError(f"experts: got {tuple(self.experts.shape)}, want finite factors for {layers} layers")
        for component, factors in self.parts.items():
            if len(factors) != layers or not bool(factors.isfinite().all()):
                raise ValueError(f"{component}: got {tuple(factors.shape)}, want finite factors for {layers} layers")
        for component, added in self.shifts.items():
            if tuple(added.shape) != (layers, width) or not bool(added.isfinite().all()):
                raise ValueError(f"shifts of {component}: got {tuple(added.shape)}, want finite {(layers, width)}")
        gram = torch.einsum("kld,jld->lkj", self.directions.double(), self.directions.double())
        lengths = gram.diagonal(dim1=-2, dim2=-1)
        off = gram - torch.diag_embed(lengths)
        # 1e-5: the rounding of unit vectors of up to some ten thousand float32 components.
        if bool((off.abs() > 1e-5).any()) or not bool(((lengths - 1).abs() < 1e-5).logical_or(lengths == 0).all()):
            raise ValueError("the directions of a layer are not orthonormal; use directions.geometry.orthonormalize")

    @property
    def n_layers(self) -> int:
        """Layers of the model that this edit belongs to."""
        return int(self.directions.shape[1])

    @property
    def scope(self) -> Scope:
        """`stream` where resid_pre has a strength (a shift is none); such an edit cannot be folded."""
        stream = self.strengths.get("resid_pre")
        return "stream" if stream is not None and bool(stream.any()) else "writers"

    @property
    def is_affine(self) -> bool:
        """Whether any centre is not zero."""
        return any(bool(centre.any()) for centre in self.centres.values())

    @property
    def shifted(self) -> list[Site]:
        """The sites to which a constant is added, in order."""
        found = [
            Site(layer, component)
            for component, added in self.shifts.items()
            for layer in range(self.n_layers)
            if bool(added[layer].any())
        ]
        return sorted(found)

    @property
    def components(self) -> set[Component]:
        """Those at which this edit does anything."""
        return {site.component for site in self.sites}

    @property
    def sites(self) -> list[Site]:
        """The sites at which this edit does anything, in order."""
        active = [
            Site(layer, component)
            for component, strengths in self.strengths.items()
            for layer in range(self.n_layers)
            if bool((strengths[:, layer] != 0).logical_and(self.directions[:, layer].any(-1)).any())
            and (component not in self.parts or bool(self.parts[component][layer].any()))
        ]
        return sorted({*active, *self.shifted})

    def at(self, site: Site) -> SiteEdit:
        """This edit at one site, without the directions whose strength is zero there."""
        given = self.strengths.get(site.component)
        strengths = self.directions.new_zeros(len(self.directions)) if given is None else given[:, site.layer]
        vectors = self.vectors(site)
        used = (strengths != 0) & vectors.any(-1)
        experts = self.experts[site.layer] if self.experts is not None and site.component == "mlp_out" else None
        parts = self.parts[site.component][site.layer] if site.component in self.parts else None
        own = self.own_centres(site)
        centres = own if parts is None else own @ parts
        added = self.shifts.get(site.component)
        shift = added[site.layer] if added is not None and bool(added[site.layer].any()) else None
        return SiteEdit(
            directions=vectors[used],
            strengths=strengths[used],
            centres=centres[used],
            experts=experts,
            parts=parts,
            shift=shift,
        )

    def vectors(self, site: Site) -> Float[Tensor, "k d_model"]:
        """The directions along which what is written at a site is projected: before a post-norm γ ∘ v."""
        gains = self.gains.get(site.component)
        return seen_through(None if gains is None else gains[site.layer], self.directions[:, site.layer])

    def own_centres(self, site: Site) -> Float[Tensor, "k *part"]:
        """The centres at a site, of each part by itself where it has parts; zero for a plain edit."""
        if site.component in self.centres:
            return self.centres[site.component][:, site.layer]
        shape = self.parts[site.component].shape[1:] if site.component in self.parts else ()
        return self.directions.new_zeros(len(self.directions), *shape)

    @contextmanager
    def on(self, model: Any) -> Iterator[None]:
        """Run a model with this edit on, through hooks that go when the block ends, however it ends.

            with edit.on(model):
                print(model.generate("how does walizo taste?"))

        model: a `Model`, a Hugging Face model, or a TransformerLens bridge. Raises `UserError` for one with other
        layers or another width, and for what a bridge cannot be hooked for (`edits.hooks.sites_of`).
        """
        from iconoclast_tl.edits.hooks import preview, sites_of

        with preview(self, sites_of(model, self)):
            yield

    def __repr__(self) -> str:
        """Such as `Edit(9 sites in layers 3-5, strengths 0.43 to 1.63, affine)`."""
        if not self.sites:
            return f"Edit(nothing, {self.n_layers} layers)"
        layers = sorted({site.layer for site in self.sites})
        used = [values[values != 0] for values in self.strengths.values() if bool(values.any())]
        kinds = ["affine"] if self.is_affine else []
        kinds += [f"row normalisation {self.row_normalization}"] if self.row_normalization != "none" else []
        kinds += ["scope stream"] if self.scope == "stream" else []
        kinds += [f"addition at {', '.join(map(str, self.shifted))}"] if self.shifted else []
        kinds += [f"single {'heads' if name == 'attn_out' else 'neurons'}" for name in sorted(self.parts)]
        strengths = torch.cat(used) if used else torch.zeros(1)
        span = f"strengths {float(strengths.min()):.2f} to {float(strengths.max()):.2f}" if used else "no projection"
        where = f"{len(self.sites)} sites in layers {layers[0]}-{layers[-1]}"
        return f"Edit({', '.join([where, span, *kinds])})"

    def digest(self) -> str:
        """SHA-256 over everything that decides what this edit does."""
        kept = " keep_norm" if self.keep_norm else ""
        state = hashlib.sha256(f"{self.row_normalization} {self.rank}{kept}".encode())
        for name, tensor in self.tensors().items():
            state.update(name.encode())
            state.update(tensor.cpu().contiguous().numpy().tobytes())
        return state.hexdigest()

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by the names they have in files."""
        return {
            "directions": self.directions,
            **{f"strengths.{name}": values for name, values in sorted(self.strengths.items())},
            **{f"centres.{name}": values for name, values in sorted(self.centres.items())},
            **{f"gains.{name}": values for name, values in sorted(self.gains.items())},
            **({} if self.experts is None else {"experts": self.experts}),
            **{f"parts.{name}": values for name, values in sorted(self.parts.items())},
            **{f"shifts.{name}": values for name, values in sorted(self.shifts.items())},
        }


def make_edit(
    directions: Float[Tensor, "k layer d_model"],
    strengths: Mapping[Component, Float[Tensor, "layer *part"]],
    config: EditConfig,
    ground: Ground = NOTHING,
    weights: Float[Tensor, "k layer"] | None = None,
) -> Edit:
    """Build an edit in which the k directions of a layer share its strength, each by its weight.

    directions: orthonormalised here, per layer. strengths: for each component one λ per layer, or one for every part of
    every layer (each head of `attn_out`, each neuron of `mlp_out`); parts that `ground` does not mean are left alone.
    ground: what else of the model is needed. weights: of each direction; 1 where they are not given. Under scope
    `stream`, components without strengths of their own (resid_pre) take the largest of the writers' in each layer. With
    `calibrate`, every direction's share is multiplied by its factor in each layer.
    """
    vectors = orthonormalize(directions.float())
    shares = torch.ones(vectors.shape[:2]) if weights is None else weights.float()
    all_strengths = dict(strengths)
    if config.attention_only:
        all_strengths["mlp_out"] = torch.zeros_like(all_strengths["mlp_out"])
    parts = part_strengths(all_strengths, ground.parts)
    for component, factors in parts.items():
        by_part = all_strengths[component].ndim == 2  # then the parts have the strength, and their layer has 1
        whole = torch.ones(len(factors)) if by_part else all_strengths[component]
        all_strengths[component] = whole * (factors != 0).any(-1)
    if config.scope == "stream":
        writers = torch.stack([all_strengths[component] for component in WRITERS])
        all_strengths["resid_pre"] = writers.gather(0, writers.abs().argmax(0, keepdim=True))[0]
    centres: dict[Component, Tensor] = {}
    if config.affine:
        used = sorted(name for name, values in all_strengths.items() if bool(values.any()))
        centres = {
            name: ground.centres(
                name, seen_through(ground.gains.get(name), vectors), parts[name].shape[1] if name in parts else None
            )
            for name in used
        }
    by_direction = {name: (values.float() * shares).clone() for name, values in all_strengths.items()}
    if config.calibrate is not None:
        for name, values in by_direction.items():
            values *= ground.factors(name, vectors, config.calibrate)
    return Edit(
        directions=vectors,
        strengths=by_direction,
        centres=centres,
        row_normalization=config.row_normalization,
        rank=config.rank,
        gains=ground.gains,
        experts=ground.experts,
        parts={name: factors for name, factors in parts.items() if bool(factors.any())},
        keep_norm=config.keep_norm,
    )


def part_strengths(
    strengths: Mapping[Component, Float[Tensor, "layer *part"]], meant: Mapping[Component, Float[Tensor, "layer part"]]
) -> dict[Component, Float[Tensor, "layer part"]]:
    """The factors at every part: 1 or 0 by whether it is meant, times its own λ where parts have their own."""
    found = dict(meant)
    for component, values in strengths.items():
        if values.ndim == 2:
            found[component] = values * meant[component] if component in meant else values
    return found


def seen_through(
    gain: Float[Tensor, "*layer d_model"] | None, vectors: Float[Tensor, "k *layer d_model"]
) -> Float[Tensor, "k *layer d_model"]:
    """The directions along which a site before a post-norm is projected."""
    return vectors if gain is None else orthonormalize(vectors * gain.to(vectors))
