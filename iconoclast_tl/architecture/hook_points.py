"""Where to hook every site: on the Hugging Face modules, and on a TransformerLens bridge.

A hook point and a module both take `register_forward_hook`, so the same hook function serves both.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from iconoclast_tl.architecture.layers import decoder_layers
from iconoclast_tl.architecture.sites import WRITERS, Component, Site, hook_name
from iconoclast_tl.architecture.writers import require_writers

SiteFunction = Callable[[Tensor, Tensor | None], Tensor]
"""(the site's tensor, what its module reads where that is another) → the tensor instead."""


@dataclass(frozen=True)
class HookedModule:
    """A module and whether the site's tensor is its output or its first input."""

    module: nn.Module
    on: Literal["output", "input"] = "output"
    experts: nn.Module | None = None
    """Inside the module: what sums its routed experts, where there are any."""

    def attach(self, change: SiteFunction) -> Any:
        """Put `change` in the place of the site's tensor in every forward pass; returns the handle that removes it."""
        if self.on == "output":
            return self.module.register_forward_hook(_on_output(change))
        return self.module.register_forward_pre_hook(_on_input(change), with_kwargs=True)


def hf_sites(hf: nn.Module, components: Collection[Component] = WRITERS) -> dict[Site, HookedModule]:
    """Where to hook every site of these components, and `resid_pre`, on the Hugging Face model.

    Raises `UserError` where one of the components is not known to be written by anything.
    """
    writers = require_writers(hf, components)
    sites = {
        site: HookedModule(
            hf.get_submodule(writer.module), experts=hf.get_submodule(writer.experts) if writer.experts else None
        )
        for site, writer in writers.items()
    }
    for index, layer in enumerate(decoder_layers(hf)):
        sites[Site(index, "resid_pre")] = HookedModule(layer, on="input")
    return sites


def bridge_sites(bridge: Any) -> dict[Site, HookedModule]:
    """Where to hook every site on a TransformerLens bridge: the hook points of `hook_name`."""
    components: tuple[Component, ...] = (*WRITERS, "resid_pre")
    sites = [Site(layer, component) for layer in range(bridge.cfg.n_layers) for component in components]
    return {site: HookedModule(bridge.hook_dict[hook_name(site)]) for site in sites}


def _on_output(change: SiteFunction) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        x = args[0] if args else None
        if isinstance(output, tuple):
            return (change(output[0], x), *output[1:])
        return change(output, x)

    return hook


def _on_input(change: SiteFunction) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (change(args[0], None), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"], None)}

    return hook
