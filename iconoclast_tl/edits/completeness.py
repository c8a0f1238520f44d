"""Whether all that writes into the stream is known: at λ = 1 on every writer nothing may be written along v.

Each layer then changes the stream by r_{l+1} − r_l with no component along v, whatever the architecture: sequential or
parallel blocks, experts, post-norms. A writer that is not known (an expert that is passed over, a third block) shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from iconoclast_tl.architecture.layers import decoder_layers
from iconoclast_tl.architecture.names import is_registered
from iconoclast_tl.architecture.sites import WRITERS, Component
from iconoclast_tl.directions.geometry import normalize
from iconoclast_tl.edits.config import EditConfig
from iconoclast_tl.edits.edit import Edit, make_edit
from iconoclast_tl.edits.ground import Ground
from iconoclast_tl.edits.hooks import preview
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.tokens import Tokens, left_pad

REGISTERED: Final = "correct what itl.register_architecture registers for"
PROBES = 3
"""Random directions that are tried."""
LENGTHS = (5, 2, 3)
"""Tokens of the rows that are asked."""


@dataclass(frozen=True)
class Added:
    """What the layers add to the stream at the real tokens of some rows."""

    changes: Float[Tensor, "layer token d_model"]
    sizes: Float[Tensor, "layer"]
    """Median norm of the stream that they pass on."""


def shares_left(
    model: Model, rows: Sequence[Tokens], strength: float = 1.0, base: Added | None = None
) -> Float[Tensor, "layer"]:
    """Of what each layer writes along v, how much an edit of every writer leaves: |vᵀΔ'| / |vᵀΔ|, medians over tokens.

    The median over random v; 0 at strength 1 but for rounding, and about 1 − λ elsewhere. Medians, since a few tokens
    are so large in some models that half precision's rounding of them would drown all others.
    """
    generator = torch.Generator().manual_seed(0)
    vectors = normalize(torch.randn(PROBES, model.d_model, generator=generator))
    strengths: dict[Component, Tensor] = {name: torch.full((model.n_layers,), strength) for name in WRITERS}
    ground = Ground(gains=model.gains)
    edits = [make_edit(v.expand(1, model.n_layers, -1), strengths, EditConfig(), ground) for v in vectors]
    return torch.stack(shares_of_edits(model, edits, rows, base)).median(0).values


def shares_of_edits(
    model: Model, edits: Sequence[Edit], rows: Sequence[Tokens], base: Added | None = None
) -> list[Float[Tensor, "layer"]]:
    """Of what each layer writes along an edit's own directions there, how much the edit leaves: ‖V Δ'‖ / ‖V Δ‖.

    Medians over tokens. What earlier edits change in what a layer reads is in it, so that it may be more than 1.
    """
    unedited, shares = base or added(model, rows), list[Tensor]()
    for edit in edits:
        with preview(edit, model.sites):
            edited = added(model, rows)
        shares.append(_along(edit, edited.changes) / _along(edit, unedited.changes).clamp(min=1e-30))
    return shares


def _along(edit: Edit, changes: Float[Tensor, "layer token d_model"]) -> Float[Tensor, "layer"]:
    """Medians over tokens of ‖V Δ‖."""
    written = torch.einsum("ltd,kld->lkt", changes, edit.directions.to(changes))
    along: Tensor = written.norm(dim=1).median(1).values
    return along


_COMPLETE: Final[WeakKeyDictionary[Any, set[tuple[Component, ...]]]] = WeakKeyDictionary()
"""Hugging Face models that passed, with the components that were asked: the check runs the model, once."""


def require_complete(model: Model) -> None:
    """`require_all_known`, once for every model; nothing is asked where attention alone is edited."""
    known = _COMPLETE.setdefault(model.hf, set())
    if not model.attention_only and model.components not in known:
        require_all_known(model)
        known.add(model.components)


def require_all_known(model: Model) -> None:
    """Raise `UserError` where a layer still writes along a direction that was taken out of all its known writers."""
    rows = random_rows(model)
    _require_rows_kept(model, rows)
    base = added(model, rows)
    left, allowed = shares_left(model, rows, base=base), stream_tolerance(model, base)
    over = (left / allowed).nan_to_num(0)  # what is not finite is told elsewhere
    worst = int(over.argmax())
    if float(over[worst]) > 1:
        raise UserError(
            f"not all that layer {worst} of {type(model.hf).__name__} writes into the stream is known",
            got=f"{left[worst]:.2g} of a direction that was taken out of its known writers",
            want=f"at most {allowed[worst]:.2g}",
            mend=f"{REGISTERED} it" if is_registered(model.hf) else "pass --attention-only to edit its attention alone",
        )


def stream_tolerance(model: Model, base: Added) -> Float[Tensor, "layer"]:
    """Largest share that rounding explains: four roundings of the stream against what a layer adds to it.

    Not under 1e-4; 1e-7 was measured in float32.
    """
    ratio = base.sizes / base.changes.norm(dim=-1).median(1).values.clamp(min=1e-30)
    allowed: Tensor = (4 * torch.finfo(model.hf.dtype).eps * ratio).clamp(min=1e-4)
    return allowed


@torch.no_grad()
def _require_rows_kept(model: Model, rows: Sequence[Tokens]) -> None:
    """Edits of several candidates in a batch go by rows: what is written must keep them, flattened or not."""
    lost: list[str] = []
    batch = left_pad(rows, model.pad_id)
    shape = batch.input_ids.shape

    def look(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            if tensor.shape[:-1] not in (shape, (shape.numel(),)) or tensor.shape[-1] != model.d_model:
                lost.append(name)

        return hook

    handles = [
        where.module.register_forward_hook(look(str(site)))
        for site, where in model.sites.items()
        if where.on == "output"
    ]
    try:
        model.hf(**model.inputs(batch), logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    if lost:
        raise UserError(
            f"{type(model.hf).__name__} writes without rows, or not into the stream",
            got=f"another shape at {lost[0]}",
            want="what is written as (batch, position, d_model)",
            mend=f"{REGISTERED} it" if is_registered(model.hf) else "pass --attention-only if it is the MLP",
        )


def random_rows(model: Model) -> list[Tokens]:
    """Rows of random tokens of different lengths, the same every time."""
    vocabulary = int(model.hf.get_input_embeddings().weight.shape[0])
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(min(vocabulary, 256), (n,), generator=generator).tolist() for n in LENGTHS]


@torch.no_grad()
def added(model: Model, rows: Sequence[Tokens]) -> Added:
    """One pass over the rows, under whatever hooks are on."""
    batch = left_pad(rows, model.pad_id)
    with _written(model.hf) as found:
        model.hf(**model.inputs(batch), logits_to_keep=1)
    real = batch.attention_mask.bool()
    sizes = torch.stack([after.norm(dim=-1)[real].median() for _, after in found])
    return Added(torch.stack([written[real] for written, _ in found]), sizes)


@contextmanager
def _written(hf: Any) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """(what it added, what it passed on) of every layer."""
    found: list[tuple[Tensor, Tensor]] = []

    def keep(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        before = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        dtype = torch.promote_types(before.dtype, torch.float32)
        before, after = before.to(dtype).cpu(), after.to(dtype).cpu()
        found.append((after - before, after))

    handles = [layer.register_forward_hook(keep, with_kwargs=True) for layer in decoder_layers(hf)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
