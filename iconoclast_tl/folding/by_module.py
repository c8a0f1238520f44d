"""Every edited module by itself: whether the fold changes what it writes as the preview does, on the same input.

At a site that reads x, with y what its base module writes, h the same under the preview and a what the folded module
writes, and Q an orthonormal basis of all that the preview can change there:

    error = ‖(a − h) Q‖ / ‖(h − y) Q‖        over the tokens of some rows

It is 1 for a module that was left out and 0.05 for a strength that is 5% off, whatever the depth of the model: nothing
accumulates, since every module is given the input that it has under the preview. Modules are copied one at a time into
float64 (experts into float32), so that it is as sharp in half precision. Offloaded ones run as they are, with the
rounding of their dtype.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from iconoclast_tl.architecture.hook_points import HookedModule, hf_sites
from iconoclast_tl.architecture.offloading import device_of
from iconoclast_tl.architecture.sites import Site
from iconoclast_tl.architecture.writers import Writer, require_writers
from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.edits.hooks import hooked, preview
from iconoclast_tl.edits.updates import SiteUpdate, Updates, edit_updates
from iconoclast_tl.folding.additions import as_writes
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.tokens import Tokens, left_pad

ROWS: Final = 4
"""That give the modules their inputs."""
LARGEST_ERROR: Final = 1e-3
"""Relative error that no rounding of what is held needs: a fiftieth of a strength that is 5% off.

Measured: 1e-7 to 1e-5 for adapters in float32, whose factors are sums in float32.
"""
_SUMS: Final = 8 * torch.finfo(torch.float32).eps
"""Rounding of sums in float32, relative to what the module writes: it shows where the edit changes next to nothing."""


@dataclass(frozen=True)
class ModuleCheck:
    """The module that is furthest from its preview, measured by its tolerance."""

    max_relative_error: float
    tolerance: float
    module: str
    """Its path in the model."""

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.max_relative_error <= self.tolerance

    def to_json(self) -> dict[str, float | bool | str]:
        """As it stands in results.json."""
        return {**asdict(self), "ok": self.ok}


@dataclass(frozen=True, kw_only=True)
class Previewed:
    """What the preview makes of one module, along the directions that it can change there."""

    path: str
    arguments: tuple[tuple[Any, ...], Mapping[str, Any]]
    """With which the module is called."""
    real: Bool[Tensor, "position"]
    """Which of the positions, rows one after the other, are no padding."""
    basis: Float[Tensor, "d_model r"]
    """Q."""
    written: Float[Tensor, "token r"]
    """h Q."""
    change: float
    """‖(h − y) Q‖."""
    size: float
    """√Σ (y_i Q_ir)²: what rounding of the elements of y, or of W, is relative to."""
    exact: bool
    """Whether it was computed in a wider dtype than the model's."""

    def error(self, module: nn.Module) -> float:
        """Of a module that should write h, ‖(a − h) Q‖."""
        written = _written(_widened(module), self.arguments, self.real) @ self.basis
        return float((written - self.written).norm())


@torch.no_grad()
def previewed_modules(edit: Edit, model: Model, rows: Sequence[Tokens]) -> list[Previewed]:
    """Every module that `edit` changes, with what enters it under the preview; of a few rows, evenly chosen."""
    written = as_writes(edit, model.hf)
    sites, writers = hf_sites(model.hf, written.components), require_writers(model.hf, written.components)
    updates = edit_updates(written, sites)
    some = rows[:: -(-len(rows) // ROWS)]
    batch = left_pad(some, model.pad_id)
    with (
        preview(edit, hf_sites(model.hf, edit.components)),
        _calls({site: sites[site] for site in updates.at}) as calls,
    ):
        model.hf(**model.inputs(batch), logits_to_keep=1)
    real = batch.attention_mask.bool().flatten()
    return [_previewed(sites[site].module, writers[site], site, updates, calls[site], real) for site in updates.at]


@torch.no_grad()
def module_check(
    expected: Sequence[Previewed], module: Callable[[str], nn.Module], stored: torch.dtype | None = None
) -> ModuleCheck:
    """The module that is furthest from what is expected, relative to its tolerance.

    module: what was folded, by the path of the base's module. stored: the narrowest dtype through which whole edited
    weights went; None for an adapter, which holds factors.
    """
    checks = []
    for one in expected:
        folded = module(one.path)
        tolerance = _tolerance(one, folded, stored)
        checks.append(ModuleCheck(one.error(folded) / max(one.change, 1e-300), tolerance, one.path))
    # A NaN is further than anything.
    return max(checks, key=lambda check: (not check.ok, check.max_relative_error / check.tolerance))


def _tolerance(of: Previewed, folded: nn.Module, stored: torch.dtype | None) -> float:
    """`LARGEST_ERROR`, and what rounding of factors, of whole weights, or of a module that is not widened may add."""
    factors, weights = 0.0, _SUMS
    if stored is not None:
        weights = max(weights, torch.finfo(stored).eps)
    for name, parameter in folded.named_parameters():
        eps = torch.finfo(parameter.dtype).eps
        if "lora_" in name:
            factors = max(factors, eps)
        if "modules_to_save" in name:
            weights = max(weights, eps)
        if not of.exact:
            weights = max(weights, 2 * eps)
    return LARGEST_ERROR + 2 * factors + weights * of.size / max(of.change, 1e-300)


def _previewed(
    module: nn.Module,
    writer: Writer,
    site: Site,
    updates: Updates,
    arguments: tuple[tuple[Any, ...], dict[str, Any]],
    real: Tensor,
) -> Previewed:
    wide = _widened(module)
    real = real.to(device_of(module))
    base = _written(wide, arguments, real)
    experts = wide.get_submodule(writer.experts[len(writer.module) :].lstrip(".")) if writer.experts else None
    alone = Updates({site: updates.at[site]}, {site: updates.strengths[site]})
    with hooked(alone, {site: HookedModule(wide, experts=experts)}):
        edited = _written(wide, arguments, real)
    basis = _span(updates.at[site]).to(base)
    return Previewed(
        path=writer.module,
        arguments=arguments,
        real=real,
        basis=basis,
        written=edited @ basis,
        change=float(((edited - base) @ basis).norm()),
        size=float((base.square() @ basis.square()).sum().sqrt()),
        exact=wide is not module,
    )


def _span(update: SiteUpdate) -> Float[Tensor, "d_model r"]:
    """An orthonormal basis of what an update adds: its directions, and constants beside them."""
    parts = [update.writes[0], *(part.flatten(0, -2) for part in (update.constants, update.shifts) if part is not None)]
    rows = torch.cat([part.double().cpu() for part in parts])
    basis: Tensor = torch.linalg.qr(rows[rows.any(-1)].T).Q
    return basis


def _widened(module: nn.Module) -> nn.Module:
    """A copy in a wider dtype; a module whose weights are offloaded as it is.

    In float64, or in float32 where nothing else is at hand: on Apple's GPUs, and for products of grouped experts.
    """
    parameters = list(module.parameters())
    if any(parameter.is_meta for parameter in parameters):
        return module
    narrow = device_of(module).type == "mps" or any(parameter.ndim == 3 for parameter in parameters)
    return copy.deepcopy(module).to(torch.float32 if narrow else torch.float64)


def _written(
    module: nn.Module, arguments: tuple[tuple[Any, ...], Mapping[str, Any]], real: Tensor
) -> Float[Tensor, "token d_model"]:
    """What a module writes at the real positions, called with arguments in its own dtype."""
    dtype = next(parameter.dtype for parameter in module.parameters() if parameter.is_floating_point())
    args, kwargs = arguments
    output = module(*(_cast(one, dtype) for one in args), **{name: _cast(one, dtype) for name, one in kwargs.items()})
    written: Tensor = output[0] if isinstance(output, tuple) else output
    wide: Tensor = written.to(torch.promote_types(written.dtype, torch.float32)).flatten(0, -2)
    return wide[real]


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


@contextmanager
def _calls(sites: Mapping[Site, HookedModule]) -> Iterator[dict[Site, tuple[tuple[Any, ...], dict[str, Any]]]]:
    """With what the module of every site is called."""
    found: dict[Site, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def keep(site: Site) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            found[site] = (args, kwargs)

        return hook

    handles = [where.module.register_forward_pre_hook(keep(site), with_kwargs=True) for site, where in sites.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
