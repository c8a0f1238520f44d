"""Collect the residual stream at each prompt's last token, at all L+1 residual points.

Points 0…L−1 are `resid_pre` of the layers; point L is the last layer's `resid_post`, *before* the final norm (Hugging
Face's last hidden state is after it and is no residual). The same pass takes what the writers write there, whose mean
over neutral prompts is the centre of affine edits.

Read through hooks on the Hugging Face modules, under TransformerLens' names, or through TransformerLens'
`run_with_cache` with a names filter and the last position only, so that no activation is kept whole. Both are equal;
importing and wrapping takes TransformerLens some seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from iconoclast_tl.activations.statistics import ActivationStats, ResidualStats
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.progress import Track, silent
from iconoclast_tl.foundation.stage_config import Changeable, StageConfig
from iconoclast_tl.models.batch_size import BatchSize
from iconoclast_tl.models.batching import over_batches
from iconoclast_tl.models.layers import decoder_layers
from iconoclast_tl.models.loading import LoadedModel
from iconoclast_tl.models.sites import WRITERS, Component, Site, hook_name, read_hook_name, residual_hook_names
from iconoclast_tl.models.twin import Twin
from iconoclast_tl.models.writers import known_writers
from iconoclast_tl.prompts.chat import TokenBatch, Tokens


class ActivationConfig(StageConfig):
    """How activations are collected."""

    batch_size: Annotated[BatchSize, Changeable] = "auto"
    """Prompts in one forward pass, `auto`: as memory has room for (measured). Halved by itself where it runs out."""
    through: Annotated[Literal["modules", "bridge"], Changeable] = "modules"
    """Read hook points on the Hugging Face modules, or on a TransformerLens bridge (seconds slower to start; equal)."""


@dataclass(frozen=True)
class LastPosition:
    """What the model holds at the last token of n prompts."""

    residuals: Float[Tensor, "n point d_model"]
    """float32, in the order of the prompts."""
    writes: dict[Component, ActivationStats]
    """Statistics `layer d_model` of what each writer component writes, if it is known what does."""
    reads: dict[Component, ActivationStats]
    """Statistics `layer d_in` of what its linears read, where it has one of the same width in every layer."""


Read = Callable[[TokenBatch], dict[str, Float[Tensor, "batch d_model"]]]
"""Reads one batch: TransformerLens hook name → activation at the last position."""


def collect_last_position(
    model: LoadedModel,
    twin: Twin | None,
    rows: Sequence[Tokens],
    batch_size: int,
    track: Track = silent,
    description: str = "collect",
) -> LastPosition:
    """Read all residual points and writers at the last position of `rows`.

    Through the twin's hook points where there is one, else through hooks on the Hugging Face modules. Raises
    `UserError` that names the layer where an activation is not finite.
    """
    n_layers = model.n_layers
    points = residual_hook_names(n_layers)
    residuals = torch.empty(len(rows), len(points), model.d_model)
    sites = {c: [hook_name(Site(layer, c)) for layer in range(n_layers)] for c in _known(model)}
    read_names = {c: [read_hook_name(Site(layer, c)) for layer in range(n_layers)] for c in sites}
    writes: dict[Component, ResidualStats] = {component: ResidualStats() for component in sites}
    reads: dict[Component, ResidualStats] = {component: ResidualStats() for component in sites}
    read = _bridge_reader(model, twin.bridge) if twin is not None else _module_reader(model)

    def take(batch: TokenBatch) -> None:
        found = {name: tensor.cpu() for name, tensor in read(batch).items()}  # layers may lie on several devices
        _require_finite(found)
        residuals[list(batch.rows)] = torch.stack([found[name].float() for name in points], dim=1)
        for component, names in sites.items():
            writes[component].update(torch.stack([found[name] for name in names], dim=1))
            inputs = [found[name] for name in read_names[component] if name in found]
            if len(inputs) == n_layers and len({tensor.shape for tensor in inputs}) == 1:
                reads[component].update(torch.stack(inputs, dim=1))

    over_batches(take, rows, model.pad_id, batch_size, track, description)
    return LastPosition(
        residuals,
        {component: stats.stats() for component, stats in writes.items()},
        {component: stats.stats() for component, stats in reads.items() if stats.n},
    )


def _bridge_reader(model: LoadedModel, bridge: Any) -> Read:
    names = {*residual_hook_names(model.n_layers)}
    names |= {hook_name(Site(layer, c)) for layer in range(model.n_layers) for c in _known(model)}
    names |= {read_hook_name(site) for site, writer in known_writers(model.hf).items() if writer.is_dense}

    def read(batch: TokenBatch) -> dict[str, Tensor]:
        inputs = model.inputs(batch)
        with torch.no_grad():
            _, cache = bridge.run_with_cache(
                inputs.pop("input_ids"),
                **inputs,
                names_filter=lambda name: name in names,
                pos_slice=-1,  # an int copies the position; a slice would keep a view of the whole activation
                return_type=None,
            )
        return {name: cache[name].reshape(len(batch.rows), -1) for name in names}

    return read


def _module_reader(model: LoadedModel) -> Read:
    def read(batch: TokenBatch) -> dict[str, Tensor]:
        with torch.no_grad(), _recording(model, len(batch.rows)) as found:
            model.hf(**model.inputs(batch), logits_to_keep=1)
        return found

    return read


@contextmanager
def _recording(model: LoadedModel, n_rows: int) -> Iterator[dict[str, Tensor]]:
    """Record under TransformerLens' names what the Hugging Face modules compute at the last position."""
    found: dict[str, Tensor] = {}
    layers = decoder_layers(model.hf)
    points = residual_hook_names(len(layers))

    def keep_output(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            # Some flatten rows and positions before they write.
            found[name] = tensor.reshape(n_rows, -1, tensor.shape[-1])[:, -1].clone()

        return hook

    def keep_input(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            tensor = args[0] if args else kwargs["hidden_states"]
            found[name] = tensor.reshape(n_rows, -1, tensor.shape[-1])[:, -1].clone()

        return hook

    handles = []
    for site, writer in known_writers(model.hf).items():
        module = model.hf.get_submodule(writer.module)
        handles.append(module.register_forward_hook(keep_output(hook_name(site))))
        if writer.is_dense:
            handles.append(module.register_forward_pre_hook(keep_input(read_hook_name(site)), with_kwargs=True))
    for layer, name in zip(layers, points[:-1], strict=True):
        handles.append(layer.register_forward_pre_hook(keep_input(name), with_kwargs=True))
    handles.append(layers[-1].register_forward_hook(keep_output(points[-1])))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _known(model: LoadedModel) -> list[Component]:
    """The components of which every layer's writer is known."""
    found = known_writers(model.hf)
    return [c for c in WRITERS if all(Site(layer, c) in found for layer in range(model.n_layers))]


def _require_finite(found: dict[str, Tensor]) -> None:
    for name in sorted(found, key=lambda name: int(name.split(".")[1])):
        if not bool(found[name].isfinite().all()):
            raise UserError(
                f"activations of layer {name.split('.')[1]} are not finite",
                got=f"NaN or infinity at {name}",
                want="finite activations",
                mend="load the model in a wider dtype (--dtype float32)",
            )
