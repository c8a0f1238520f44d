"""Collect the residual stream at each prompt's last tokens, at all L+1 residual points.

Points 0…L−1 are `resid_pre` of the layers; point L is the last layer's `resid_post`, *before* the final norm (Hugging
Face's last hidden state is after it and is no residual). The same pass takes what the writers write at the last token,
whose mean over neutral prompts is the centre of affine edits.

Read through hooks on the Hugging Face modules, under TransformerLens' names, or through TransformerLens'
`run_with_cache` with a names filter and the last positions only, so that no activation is kept whole. Both are equal;
importing and wrapping takes TransformerLens some seconds. Residuals are handed on batch by batch, and of the rest only
statistics are kept: memory does not grow with the number of prompts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from iconoclast_tl.activations.positions import n_unlike, positions_of
from iconoclast_tl.activations.statistics import ActivationStats, ResidualStats
from iconoclast_tl.activations.store import (
    CONTENT,
    Activations,
    InMemory,
    activation_key,
    activation_sink,
    add_means,
    keep_in,
    load_activations,
)
from iconoclast_tl.architecture.layers import decoder_layers
from iconoclast_tl.architecture.sites import WRITERS, Component, Site, hook_name, read_hook_name, residual_hook_names
from iconoclast_tl.architecture.writers import known_writers
from iconoclast_tl.execution.batch_size import BatchSize, fitting
from iconoclast_tl.execution.batching import over_batches
from iconoclast_tl.execution.shared_prefix import Prefix, rows_of, shared_prefix
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.progress import Say, Track, silent, unheard
from iconoclast_tl.foundation.stage_config import Changeable, StageConfig
from iconoclast_tl.models.model import Model, require_model
from iconoclast_tl.models.twin import Twin, make_twin
from iconoclast_tl.prompts.contrast import SIDES, ContrastSet, require_contrast_set
from iconoclast_tl.prompts.tokens import TokenBatch, Tokens, require_context


class ActivationConfig(StageConfig):
    """How activations are collected."""

    batch_size: Annotated[BatchSize, Changeable] = "auto"
    """Prompts in one forward pass, `auto`: as memory has room for (measured). Halved by itself where it runs out."""
    through: Annotated[Literal["modules", "bridge"], Changeable] = "modules"
    """Read hook points on the Hugging Face modules, or on a TransformerLens bridge (seconds slower to start; equal)."""
    positions: Annotated[Annotated[int, Field(ge=1)] | Literal["template"], Changeable] = 1
    """Keep residuals at the last so many tokens of every prompt, of those that the chat template writes after the
    instruction; `template`: at all of those."""


@dataclass(frozen=True)
class AtWriters:
    """Statistics of what the writers do at the last token of n prompts."""

    writes: dict[Component, ActivationStats]
    """Statistics `layer d_model` of what each writer component writes, if it is known what does."""
    reads: dict[Component, ActivationStats]
    """Statistics `layer d_in` of what its linears read, where it has one of the same width in every layer."""


Keep = Callable[[Sequence[int], Float[Tensor, "batch position point d_model"]], None]
"""Takes the residuals of one batch, float32, and where its rows stood; the first position is −1, the next −2."""
Read = Callable[[TokenBatch], dict[str, Float[Tensor, "batch *position d_model"]]]
"""Reads one batch: TransformerLens hook name → activation at the last positions (residual points), or the last one."""


def collect(
    model: Model,
    data: ContrastSet,
    *,
    to: str | PathLike[str] | None = None,
    positions: int | Literal["template"] = 1,
    batch_size: BatchSize = "auto",
    through: Literal["modules", "bridge"] = "modules",
    key: str | None = None,
    track: Track = silent,
    say: Say = unheard,
) -> Activations:
    """Residuals of the train and val prompts of `data` at all L+1 residual points, and the writers' means.

    to: a file that they are streamed to and mapped from; one that holds the same already is read. In memory by
    default, float32: prompts × positions × (L+1) × d_model × 4 bytes. positions: how many of the tokens that the
    chat template writes after the instruction, `template` for all. through: hooks on the modules or TransformerLens'
    `run_with_cache`; both read the same. key: names what the numbers depend on where the caller knows more of it.

    Raises `UserError` for a prompt that does not fit, and where an activation is not finite.
    """
    require_model(model)
    require_contrast_set(data)
    to = None if to is None else Path(to)
    places = positions_of(positions, model.chat)
    prompts = {f"{side}_{split}": getattr(data.of(split), side) for side in SIDES for split in ("train", "val")}
    rows = {name: [model.chat.encode(prompt) for prompt in some] for name, some in prompts.items()}
    for some in rows.values():
        require_context(some, 0, model.context_length)
    key = key or activation_key(
        model=model.fingerprint, dtype=model.dtype, rows=rows, positions=places, kept=CONTENT, writers=_paths(model)
    )
    if to is not None and (found := load_activations(to, key)) is not None:
        return found
    if unlike := sum(n_unlike(some, places, model.chat) for some in rows.values()):
        say(f"{unlike} prompts end in other tokens than the template's at positions {places[-1]} to -1")
    twin = _twin(model, say) if through == "bridge" else None
    if batch_size == "auto":
        batch_size = fitting(model, max(len(row) for some in rows.values() for row in some), 1, track).rows
    sizes = {name: len(some) for name, some in rows.items()}
    shape = (len(places), model.n_layers + 1, model.d_model)
    with activation_sink(
        to, sizes, *shape, {"key": key, "fingerprint": model.fingerprint, "prompts": digest_of(data)}
    ) as sink:
        seen: dict[str, AtWriters] = {}
        for name, some in rows.items():
            keep, what = keep_in(sink, name), f"collect {name.replace('_', ' ')}"
            seen[name] = collect_residuals(model, twin, some, keep, len(places), batch_size, track, what)
        target, neutral = seen["target_train"], seen["neutral_train"]
        means = {"neutral_writes": neutral.writes, "neutral_reads": neutral.reads, "target_reads": target.reads}
        for name, stats in means.items():
            add_means(sink, name, {component: one.mean for component, one in stats.items()})
    found = sink.activations() if isinstance(sink, InMemory) else load_activations(cast(Path, to), key)
    if found is None:
        raise RuntimeError(f"{to} was written and is not there")
    return found


def _paths(model: Model) -> dict[str, str]:
    """Site → the module that is read there: another where the names of its architecture were registered since."""
    return {str(site): writer.module for site, writer in known_writers(model.hf).items()}


def digest_of(data: ContrastSet) -> str:
    """Names the prompts that activations are collected from: those of train and val."""
    known = {name: digest for name, digest in data.digests().items() if name.endswith(("train", "val"))}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def require_same_prompts(acts: Activations, data: ContrastSet) -> None:
    """Raise `UserError` where activations were collected from other prompts than `data` holds."""
    if acts.prompts not in (None, digest_of(data)):
        raise UserError(
            "the activations were collected from other prompts",
            got="other texts, or another split of them",
            want="those of train and val",
            mend="collect them from this contrast set",
        )


def _twin(model: Model, say: Say) -> Twin | None:
    """The TransformerLens twin, where it computes what the model computes."""
    twin = make_twin(model)
    if isinstance(twin, Twin):
        return twin
    say(f"{twin.reason}; collecting through hooks on the Hugging Face modules instead")
    return None


def collect_residuals(
    model: Model,
    twin: Twin | None,
    rows: Sequence[Tokens],
    keep: Keep,
    n_positions: int,
    batch_size: int,
    track: Track = silent,
    description: str = "collect",
) -> AtWriters:
    """Read all residual points at the last `n_positions` of `rows`, and the writers at the last one.

    Residuals go to `keep` batch by batch, in any order (a batch again where memory ran out in it). Through the twin's
    hook points where there is one, else through hooks on the Hugging Face modules. Raises `UserError` that names the
    layer where an activation is not finite, and for a prompt that is shorter than the positions.
    """
    _require_length(rows, n_positions)
    n_layers = model.n_layers
    points = residual_hook_names(n_layers)
    sites = {c: [hook_name(Site(layer, c)) for layer in range(n_layers)] for c in _known(model)}
    read_names = {c: [read_hook_name(Site(layer, c)) for layer in range(n_layers)] for c in sites}
    writes: dict[Component, ResidualStats] = {component: ResidualStats() for component in sites}
    reads: dict[Component, ResidualStats] = {component: ResidualStats() for component in sites}
    prefix = None if twin is not None else shared_prefix(model, rows, n_positions)
    cached = 0 if prefix is None else len(prefix)
    if twin is not None:
        read = _bridge_reader(model, twin.bridge, n_positions)
    else:
        read = _module_reader(model, n_positions, prefix)

    def take(batch: TokenBatch) -> None:
        found = {name: tensor.cpu() for name, tensor in read(batch).items()}  # layers may lie on several devices
        _require_finite(found)
        keep(batch.rows, torch.stack([found[name].float() for name in points], dim=2))
        for component, names in sites.items():
            writes[component].update(torch.stack([found[name] for name in names], dim=1))
            inputs = [found[name] for name in read_names[component] if name in found]
            if len(inputs) == n_layers and len({tensor.shape for tensor in inputs}) == 1:
                reads[component].update(torch.stack(inputs, dim=1))

    rest = [row[cached:] for row in rows]
    over_batches(take, rest, model.pad_id, batch_size, track, description, cached)
    return AtWriters(
        {component: stats.stats() for component, stats in writes.items()},
        {component: stats.stats() for component, stats in reads.items() if stats.n},
    )


def _bridge_reader(model: Model, bridge: Any, n_positions: int) -> Read:
    points = {*residual_hook_names(model.n_layers)}
    names = {*points}
    names |= {hook_name(Site(layer, c)) for layer in range(model.n_layers) for c in _known(model)}
    names |= {read_hook_name(site) for site, writer in known_writers(model.hf).items() if writer.is_dense}

    def read(batch: TokenBatch) -> dict[str, Tensor]:
        inputs = model.inputs(batch)
        with torch.no_grad():
            _, cache = bridge.run_with_cache(
                inputs.pop("input_ids"),
                **inputs,
                names_filter=lambda name: name in names,
                # A list copies the positions; a slice would keep a view of the whole activation.
                pos_slice=[*range(-1, -n_positions - 1, -1)],
                return_type=None,
            )
        found = {name: cache[name].reshape(len(batch.rows), n_positions, -1) for name in names}
        return {name: tensor if name in points else tensor[:, 0] for name, tensor in found.items()}

    return read


def _module_reader(model: Model, n_positions: int, prefix: Prefix | None = None) -> Read:
    with torch.no_grad():
        shared = None if prefix is None else prefix.cache(model)

    def read(batch: TokenBatch) -> dict[str, Tensor]:
        n = len(batch.rows)
        cache = None if shared is None else rows_of(model, shared, torch.zeros(n, dtype=torch.long))
        with torch.no_grad(), _recording(model, n, n_positions) as found:
            model.hf(**model.inputs(batch), past_key_values=cache, use_cache=cache is not None, logits_to_keep=1)
        return found

    return read


@contextmanager
def _recording(model: Model, n_rows: int, n_positions: int) -> Iterator[dict[str, Tensor]]:
    """Record under TransformerLens' names what the Hugging Face modules compute at the last positions."""
    found: dict[str, Tensor] = {}
    layers = decoder_layers(model.hf)
    points = residual_hook_names(len(layers))

    def record(name: str, tensor: Tensor) -> None:
        by_row = tensor.reshape(n_rows, -1, tensor.shape[-1])  # some flatten rows and positions before they write
        # Both copy, so that the whole activation is not kept.
        found[name] = by_row[:, -n_positions:].flip(1) if name in points else by_row[:, -1].clone()

    def keep_output(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            record(name, output[0] if isinstance(output, tuple) else output)

        return hook

    def keep_input(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            record(name, args[0] if args else kwargs["hidden_states"])

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


def _known(model: Model) -> list[Component]:
    """The components of which every layer's writer is known."""
    found = known_writers(model.hf)
    return [c for c in WRITERS if all(Site(layer, c) in found for layer in range(model.n_layers))]


def _require_length(rows: Sequence[Tokens], n_positions: int) -> None:
    """Before a short prompt's first token stands padding, which holds nothing."""
    for index, row in enumerate(rows):
        if len(row) < n_positions:
            raise UserError(
                f"prompt {index + 1} is shorter than the positions that are collected",
                got=f"{len(row)} tokens",
                want=f"at least {n_positions}",
                mend="lower activations.positions",
            )


def _require_finite(found: dict[str, Tensor]) -> None:
    for name in sorted(found, key=lambda name: int(name.split(".")[1])):
        if not bool(found[name].isfinite().all()):
            raise UserError(
                f"activations of layer {name.split('.')[1]} are not finite",
                got=f"NaN or infinity at {name}",
                want="finite activations",
                mend="load the model in a wider dtype (--dtype float32)",
            )
