"""Writers by what they compute: for architectures that keep them under names that are not known.

A layer adds what its writers write to the stream and passes the rest on. So: with every linear of the stream's width
silenced (its output zero), a layer passes on what it was given; and those that cannot speak again without changing that
are its writers. They are asked in the order in which they run, so that of a chain (values, then the output projection)
the last remains. An attention writer is told apart from an MLP writer by what it reads: in a silenced model the
stream at a position is its own token's embedding, and only attention reads other positions.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from iconoclast_tl.architecture.layers import decoder_layer_list
from iconoclast_tl.architecture.offloading import device_of
from iconoclast_tl.architecture.sites import WRITERS, Component, Site

log = logging.getLogger(__name__)
TOKENS: Final = ((5, 9, 17, 3), (6, 9, 17, 3))
"""Two rows that differ in their first token alone."""
CHANGED: Final = 1e-4
"""Share of the stream's norm from which a layer is said to have changed it; silenced layers change nothing at all."""

FoundWriters = Mapping[Site, str]
"""Path of the linear that writes at a site."""


@dataclass(frozen=True)
class _Seen:
    """Of one pass over `TOKENS`."""

    changes: list[float]
    """‖what a layer adds‖ / ‖what it was given‖, the largest over tokens, of every layer."""
    order: list[str]
    """Candidates, as they ran."""
    reads: Mapping[str, Tensor]
    """What each candidate read at the last position of each row."""


@torch.no_grad()
def discover(hf: Any, is_linear: Any) -> FoundWriters:
    """One linear for every site of every layer, where exactly two are found in it; other layers are left out.

    is_linear: tells modules that are linear. Runs the model on a few tokens once for every name of a linear in a layer.
    Empty, with a warning, where that cannot be done, such as for linears that see a part of the tokens (experts).
    """
    try:
        return _discover(hf, is_linear)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a foreign architecture may fail in any way
        log.warning("%s cannot be asked which linears write into its stream: %r", type(hf).__name__, error)
        return {}


def _discover(hf: Any, is_linear: Any) -> FoundWriters:
    prefix, layers = decoder_layer_list(hf)
    width = hf.config.get_text_config().hidden_size
    inside = [
        [
            f"{prefix}.{index}.{name}"
            for name, module in layer.named_modules()
            if is_linear(module) and _out(module) == width
        ]
        for index, layer in enumerate(layers)
    ]
    candidates = [path for paths in inside for path in paths]
    seen = _run(hf, candidates, candidates)
    silent = {index: set(paths) for index, paths in enumerate(inside) if seen.changes[index] <= CHANGED}
    rank = {path: number for number, path in enumerate(seen.order)}
    for step in range(max((len(paths) for paths in silent.values()), default=0)):
        # One of every layer speaks again, the first that runs; a layer that then adds something needs it silent.
        asked = {index: sorted(inside[index], key=lambda path: rank.get(path, -1))[step : step + 1] for index in silent}
        trial = [path for index, paths in silent.items() for path in paths - set(asked[index])]
        changes = _run(hf, trial, candidates).changes
        for index, paths in asked.items():
            if changes[index] <= CHANGED:
                silent[index] -= set(paths)
    writers = [path for paths in silent.values() for path in paths]
    reads = _run(hf, writers, writers).reads  # of a model whose layers compute everything and write nothing
    return {
        Site(index, component): path
        for index, paths in silent.items()
        for component, path in _by_component(paths, reads).items()
    }


def _by_component(paths: set[str], reads: Mapping[str, Tensor]) -> dict[Component, str]:
    if len(paths) != len(WRITERS):
        return {}
    mixes = {path: not torch.allclose(reads[path][0], reads[path][1], rtol=1e-4, atol=1e-6) for path in paths}
    attention = [path for path, mixed in mixes.items() if mixed]
    if len(attention) != 1:
        return {}
    return {"attn_out": attention[0], "mlp_out": next(iter(paths - set(attention)))}


def _out(module: nn.Module) -> int:
    return int(getattr(module, "out_features", 0) or getattr(module, "nf", 0))


def _run(hf: Any, silenced: list[str], watched: list[str]) -> _Seen:
    """Pass `TOKENS` through the model with the outputs of `silenced` zero."""
    reads: dict[str, Tensor] = {}
    changes: list[float] = []
    with _hooked(hf, set(silenced), watched, reads, changes):
        ids = torch.tensor(TOKENS, device=device_of(hf.get_input_embeddings()))
        hf(input_ids=ids, use_cache=False)
    return _Seen(changes, list(reads), reads)


@contextmanager
def _hooked(
    hf: Any, silenced: set[str], watched: list[str], reads: dict[str, Tensor], changes: list[float]
) -> Iterator[None]:
    def silence(path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
            # Some flatten rows and positions: the last position of a row is then its last line.
            reads[path] = args[0].reshape(len(TOKENS), -1, args[0].shape[-1])[:, -1].float().cpu()
            return torch.zeros_like(output) if path in silenced else None

        return hook

    def compare(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        after = (output[0] if isinstance(output, tuple) else output).float()
        before = (
            (args[0] if args else kwargs["hidden_states"]).float().to(after.device)
        )  # of the layer before, elsewhere
        changes.append(float(((after - before).norm(dim=-1) / before.norm(dim=-1).clamp(min=1e-30)).max()))

    handles = [hf.get_submodule(path).register_forward_hook(silence(path)) for path in watched]
    handles += [layer.register_forward_hook(compare, with_kwargs=True) for layer in decoder_layer_list(hf)[1]]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
