"""A fingerprint that names a model's weights, so that a run folder knows its model again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from torch import Tensor, nn

from iconoclast_tl.architecture.offloading import present

DTYPE_KEYS: Final = ("dtype", "torch_dtype", "quantization_config")
"""Entries of a configuration that say how weights are held and not what they are."""


def fingerprint_of(hf: Any) -> str:
    """SHA-256 over the configuration and at most 64 evenly spaced elements of every parameter.

    A sample rather than everything: training moves every parameter, and a 70 GB model must not be read twice. The
    dtype counts only in so far as it rounds the sample.
    """
    config = _identity(hf.config.to_dict())
    state = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, sample in _samples(hf):
        state.update(name.encode())
        state.update(sample.float().cpu().numpy().tobytes())
    return state.hexdigest()


def _identity(config: Mapping[Any, Any]) -> dict[str, Any]:
    """A configuration without what says where it was read, by what version, and how its weights are held."""
    kept = {str(key): value for key, value in config.items() if key not in (*DTYPE_KEYS, "transformers_version")}
    return {
        key: _identity(value) if isinstance(value, Mapping) else value
        for key, value in kept.items()
        if not key.startswith("_")
    }


def _samples(hf: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, _ in hf.named_parameters():
        module, _, leaf = name.rpartition(".")
        with present(hf.get_submodule(module)):
            flat = getattr(hf.get_submodule(module), leaf).detach().flatten()
            shape = tuple(getattr(hf.get_submodule(module), leaf).shape)
        yield f"{name}{shape}", flat[:: max(flat.numel() // 64, 1)][:64]
