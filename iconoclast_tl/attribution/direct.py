"""What each part writes along a vector w at one position: direct attribution.

The stream is the sum of what was written into it, so that wᵀr = Σ_parts wᵀ(what the part wrote), exactly. A head h that
reads z_h (TransformerLens' `hook_z`) writes W_h z_h, an attention's bias belongs to none of its heads, and where a
post-norm stands between, γ ∘ y · ρ is written, with ρ what the norm made of this token.

For a direction v, w = v. For a logit the final norm is folded in: w = γ ∘ u · r, with its scale r held fixed, u the
difference of the unembedding's rows, and the norm's own shift a constant (direct logit attribution).

Only numbers leave the hooks, one a part and position: no activation is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from iconoclast_tl.architecture.final_norm import LinearNorm, final_norm, linear_norm
from iconoclast_tl.architecture.hook_points import HookedModule, hf_sites
from iconoclast_tl.architecture.layers import decoder_layers
from iconoclast_tl.architecture.names import names_of
from iconoclast_tl.architecture.offloading import present
from iconoclast_tl.architecture.post_norm import post_norm
from iconoclast_tl.architecture.reading import Read, read_along, sum_parts, widened
from iconoclast_tl.architecture.sites import WRITERS, Site
from iconoclast_tl.attribution.parts import Part, model_parts
from iconoclast_tl.attribution.result import Attribution, PositionSums
from iconoclast_tl.execution.batching import Room
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.progress import Track, silent
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.tokens import Tokens, left_pad

INCOMPLETE = 1e-3
"""Largest gap between the sum over parts and the stream's own projection, as a share of the parts' magnitudes: float32
leaves 1e-6, half precision rounds the stream at every layer (allowed for by its epsilon)."""
INCOMPLETE_QUANTISED = 0.02
"""The same of quantised weights: linears in 8 bits round what they read, row by row, so that parts do not quite add up
(measured 1.5e-3 on the shipped organism)."""


@dataclass(frozen=True)
class Unembedding:
    """A difference of logits as a vector after the final norm, and the constant of the unembedding's biases."""

    vector: Float[Tensor, "d_model"]
    constant: float
    norm: nn.Module
    linear: LinearNorm


def unembedding(model: Model, rising: Tensor, falling: Tensor) -> Unembedding:
    """The mean logit of `rising` minus that of `falling`. Raises `UserError` where the final norm is not known."""
    head: Any = model.hf.get_output_embeddings()
    norm, scale = final_norm(model.hf), _logit_scale(model, head)
    with present(head):

        def mean(values: Tensor, tokens: Tensor) -> Tensor:
            return values.detach()[tokens.to(values.device)].float().mean(0).cpu()

        vector = mean(head.weight, rising) - mean(head.weight, falling)
        bias = getattr(head, "bias", None)
        constant = 0.0 if bias is None else float(mean(bias, rising) - mean(bias, falling))
    return Unembedding(scale * vector, scale * constant, norm, linear_norm(norm, model.d_model))


@torch.no_grad()
def _logit_scale(model: Model, head: nn.Module) -> float:
    """What some architectures (Cohere, Granite) multiply the unembedding's output by; 1 where a soft cap bends it."""
    kept: list[Tensor] = []
    handle = head.register_forward_hook(lambda module, args, output: kept.append(widened(output)))
    try:
        logits = widened(model.hf(**model.inputs(left_pad([[1, 2, 3]], model.pad_id)), use_cache=False).logits)
    finally:
        handle.remove()
    raw = kept[0].to(logits)
    scale = float((raw * logits).sum() / raw.square().sum())
    return scale if torch.allclose(scale * raw, logits, rtol=1e-2, atol=1e-2 * float(logits.abs().max())) else 1.0


def direct(
    model: Model,
    rows: Sequence[Tokens],
    along: Float[Tensor, "d_model"] | Unembedding,
    *,
    batch_size: int,
    positions: bool = False,
    track: Track = silent,
    description: str = "direct",
) -> Attribution:
    """What every part writes along a vector at the last token of every prompt; with `positions` at every position, too.

    The values of a prompt sum to the projection of the last residual point, or to the difference of logits before any
    soft cap. Raises `UserError` where they do not: then some writer is not known.
    """
    sites = all_writers(model)
    parts = [*model_parts(model.hf), *_biases(model, sites)]
    recorder = _Recorder(model, sites, parts, along, last_only=not positions)
    found = torch.zeros(len(rows), len(parts))
    gap, size, sums = 0.0, 0.0, PositionSums(len(parts))

    @torch.no_grad()
    def take(chosen: Tensor) -> None:
        nonlocal gap, size
        batch = left_pad([rows[row] for row in chosen.tolist()], model.pad_id)
        with recorder.on(len(chosen)) as values:
            model.hf(**model.inputs(batch), logits_to_keep=1, use_cache=False)
        contributions, own = values()
        real = batch.attention_mask.bool()[:, -contributions.shape[1] :]
        gap = max(gap, float((contributions.sum(-1) - own).abs()[real].max()))
        size = max(size, float(contributions.abs().sum(-1)[real].max()))
        found[chosen] = contributions[:, -1]
        if positions:
            sums.add(contributions, batch.attention_mask, contributions.shape[1] - 1, chosen)

    order = torch.tensor(sorted(range(len(rows)), key=lambda row: -len(rows[row])))
    Room(batch_size).over(order, take, track, description)
    least = INCOMPLETE if model.quantization == "none" else INCOMPLETE_QUANTISED
    allowed = max(least, 4 * torch.finfo(model.hf.dtype).eps * model.n_layers)
    if not gap <= allowed * max(size, 1e-30):
        raise UserError(
            f"the parts of {type(model.hf).__name__} do not add up to its stream",
            got=f"a gap of {gap / max(size, 1e-30):.2g} of their magnitudes",
            want=f"at most {allowed:.2g}",
            mend="leave `direct` out of --method",
        )
    of = recorder.of
    by_position = sums.result() if positions else None
    return Attribution("direct", of, tuple(parts), found, by_position, {"incompleteness": gap / max(size, 1e-30)})


def all_writers(model: Model) -> Mapping[Site, HookedModule]:
    """Every known writer of a model, also those that its edits leave alone (`attention_only`)."""
    try:
        return hf_sites(model.hf)
    except UserError:  # where the MLPs' writers are not known
        return model.sites


def _biases(model: Model, sites: Mapping[Site, HookedModule]) -> list[Part]:
    """The constants that belong to no head: biases of attentions, and the constants after the last layer."""
    heads = {part.layer for part in model_parts(model.hf) if part.component == "head"}
    with_bias = [layer for layer in sorted(heads) if _has_bias(sites[Site(layer, "attn_out")].module)]
    return [*(Part(layer, "bias") for layer in with_bias), Part(model.n_layers, "bias")]


def _has_bias(module: nn.Module) -> bool:
    return getattr(module, "bias", None) is not None


Values = Callable[[], tuple[Float[Tensor, "row pos part"], Float[Tensor, "row pos"]]]


class _Recorder:
    """Hooks that record what every part writes along w."""

    def __init__(
        self,
        model: Model,
        sites: Mapping[Site, HookedModule],
        parts: Sequence[Part],
        along: Tensor | Unembedding,
        last_only: bool,
    ) -> None:
        """last_only: record the last position of every row only."""
        self._last_only, self._n_rows = last_only, 0
        self._model, self._sites, self._gains = model, sites, model.gains
        self._reads: dict[Site, Read] = {}
        self._place = {part: index for index, part in enumerate(parts)}
        self._logit = along if isinstance(along, Unembedding) else None
        self._w = along if isinstance(along, Tensor) else along.linear.read(along.vector)
        # Granite scales what is written into the stream.
        self._multiplier = float(getattr(model.hf.config.get_text_config(), "residual_multiplier", None) or 1.0)

    def _cut(self, tensor: Tensor) -> Tensor:
        """The states as row × position, or the last position only; some layers flatten both into one axis."""
        rows = tensor.reshape(self._n_rows, -1, tensor.shape[-1])
        return widened(rows[:, -1:] if self._last_only else rows).detach()

    @property
    def of(self) -> str:
        """What is attributed, in words."""
        return "projection on v" if self._logit is None else "difference of logits, final norm folded in"

    @contextmanager
    def on(self, n_rows: int) -> Iterator[Values]:
        """Record what a forward pass over so many rows writes; the hooks go when the block ends."""
        self._n_rows = n_rows
        kept: dict[Part, Tensor] = {}
        ends: dict[str, Tensor] = {}
        handles = self._hooks(kept, ends)
        try:
            yield lambda: self._values(kept, ends)
        finally:
            for handle in handles:
                handle.remove()

    def _values(self, kept: Mapping[Part, Tensor], ends: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        some = ends["stream"]
        values = torch.zeros(*some.shape[:-1], len(self._place), dtype=some.dtype)
        for part, value in kept.items():
            values[..., self._place[part]] = value.cpu()
        own = some @ self._w.to(some)
        if self._logit is not None:
            norm, vector = self._logit.linear, self._logit.vector.to(some)
            scale = norm.scale(some, ends["normed"])
            constant = float(norm.shift @ self._logit.vector) + self._logit.constant
            values *= scale[..., None]
            values[..., self._place[Part(self._model.n_layers, "bias")]] = constant
            own = ends["normed"] @ vector + self._logit.constant
        return values, own

    def _hooks(self, kept: dict[Part, Tensor], ends: dict[str, Tensor]) -> list[Any]:
        handles, layers = [], decoder_layers(self._model.hf)

        def embed(module: Any, args: Any, kwargs: Any) -> None:
            states = self._cut(args[0] if args else kwargs["hidden_states"])
            kept[Part(0, "embed")] = states @ self._w.to(states)

        def keep(name: str) -> Callable[[Any, Any, Any], None]:
            def hook(module: Any, args: Any, output: Any) -> None:
                ends[name] = self._cut(output[0] if isinstance(output, tuple) else output).cpu()

            return hook

        handles.append(layers[0].register_forward_pre_hook(embed, with_kwargs=True))
        handles.append(layers[-1].register_forward_hook(keep("stream")))
        if self._logit is not None:
            handles.append(self._logit.norm.register_forward_hook(keep("normed")))
        for layer, decoder in enumerate(layers):
            for component in WRITERS:
                if Site(layer, component) in self._sites:
                    handles += self._site_hooks(Site(layer, component), decoder, kept)
        return handles

    def _site_hooks(self, site: Site, decoder: nn.Module, kept: dict[Part, Tensor]) -> list[Any]:
        module = self._sites[site].module
        gains = self._gains.get(site.component)
        w = self._w if gains is None else gains[site.layer].to(self._w) * self._w
        heads = [part for part in self._place if part.component == "head" and part.site == site]
        mine = heads or [part for part in self._place if part.site == site and part.component != "bias"]
        bias = Part(site.layer, "bias") if heads and Part(site.layer, "bias") in self._place else None
        if heads and site not in self._reads:
            self._reads[site] = read_along(module, w[None])
        read = self._reads.get(site)
        raw: list[Tensor] = []

        def write(mod: Any, args: Any, output: Any) -> None:
            y = self._cut(output[0] if isinstance(output, tuple) else output)
            if read is None:
                kept[mine[0]] = y @ w.to(y) * self._multiplier
            else:
                x = self._cut(args[0])
                by_head = sum_parts(x * read.weight[0].to(x), len(heads)) * self._multiplier
                kept.update(zip(heads, by_head.unbind(-1), strict=True))
                if bias is not None:
                    kept[bias] = (read.bias[0] * self._multiplier).expand(by_head.shape[:-1])
            if gains is not None:
                raw.append(y)

        def scale(mod: Any, args: Any, output: Any) -> None:
            """Scale what was recorded by what the post-norm makes of it."""
            y, out = raw.pop(), self._cut(output)
            linear = gains[site.layer].to(y) * y if gains is not None else y
            rho = (out * linear).sum(-1) / linear.square().sum(-1)
            for part in [*mine, *([bias] if bias is not None else [])]:
                kept[part] = kept[part] * rho

        handles = [module.register_forward_hook(write)]
        norm = post_norm(decoder, site.component, names_of(self._model.hf))
        if gains is not None and norm is not None:
            handles.append(norm.register_forward_hook(scale))
        return handles
