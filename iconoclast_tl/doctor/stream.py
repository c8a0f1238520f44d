"""Whether all that writes into the stream is known: at λ = 1 on every writer nothing may be written along v.

Each layer then changes the stream by r_{l+1} − r_l with no component along v, whatever the architecture: sequential or
parallel blocks, experts, post-norms. A writer that is not known (an expert that is passed over, a third block) shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from iconoclast_tl.directions.geometry import normalize
from iconoclast_tl.edits.edit import EditConfig, make_edit
from iconoclast_tl.edits.hooks import preview
from iconoclast_tl.models.hook_points import HookedModule
from iconoclast_tl.models.layers import decoder_layers
from iconoclast_tl.models.loading import LoadedModel
from iconoclast_tl.models.sites import WRITERS, Component, Site
from iconoclast_tl.prompts.chat import Tokens, left_pad

PROBES = 3
"""Random directions that are tried."""


def shares_left(
    model: LoadedModel,
    sites: Mapping[Site, HookedModule],
    gains: Mapping[Component, Float[Tensor, "layer d_model"]],
    rows: Sequence[Tokens],
    strength: float = 1.0,
) -> Float[Tensor, "layer"]:
    """Of what each layer writes along v, how much an edit of every writer leaves: |vᵀΔ'| / |vᵀΔ|, over all tokens.

    The median over random v of the ratio of root mean squares; 0 at strength 1 but for rounding, and about 1 − λ
    elsewhere (exactly, where no post-norm follows).
    """
    generator = torch.Generator().manual_seed(0)
    vectors = normalize(torch.randn(PROBES, model.d_model, generator=generator))
    base = _changes(model, rows)
    shares = []
    for v in vectors:
        directions = v.expand(1, model.n_layers, -1)
        strengths: dict[Component, Tensor] = {name: torch.full((model.n_layers,), strength) for name in WRITERS}
        with preview(make_edit(directions, strengths, EditConfig(), None, gains), sites):
            edited = _changes(model, rows)
        v = v.double()
        shares.append((edited @ v).square().mean(1).sqrt() / (base @ v).square().mean(1).sqrt().clamp(min=1e-30))
    return torch.stack(shares).median(0).values


@torch.no_grad()
def _changes(model: LoadedModel, rows: Sequence[Tokens]) -> Float[Tensor, "layer token d_model"]:
    """What every layer adds to the stream at every real token."""
    batch = left_pad(rows, model.pad_id)
    with _entering_and_leaving(model.hf) as found:
        model.hf(**model.inputs(batch))
    real = batch.attention_mask.bool()
    return torch.stack([(after - before)[real] for before, after in found])


@contextmanager
def _entering_and_leaving(hf: Any) -> Iterator[list[tuple[Tensor, Tensor]]]:
    found: list[tuple[Tensor, Tensor]] = []

    def keep(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        before = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        found.append((before.double().cpu(), after.double().cpu()))

    handles = [layer.register_forward_hook(keep, with_kwargs=True) for layer in decoder_layers(hf)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
