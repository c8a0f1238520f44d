"""What manifest.json says of a run: versions, model, prompts, tokens, settings."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any, Final

from iconoclast_tl.architecture.writers import discovered_writers
from iconoclast_tl.models.model import Model
from iconoclast_tl.models.stored import digest_of
from iconoclast_tl.stages.run_folder import SCHEMA

PACKAGES: Final = ("iconoclast-tl", "torch", "transformers", "transformer-lens", "peft", "optuna", "numpy")


def versions() -> dict[str, str]:
    """Versions of what a run's numbers depend on."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}


def make_manifest(
    settings: Mapping[str, Any],
    model: Mapping[str, Any],
    prompts: Mapping[str, str],
    counts: Mapping[str, Any],
    tokens: str,
) -> dict[str, Any]:
    """The manifest of a new run."""
    return {
        "schema": SCHEMA,
        "versions": versions(),
        "model": dict(model),
        "prompts": dict(prompts),
        "tokens": tokens,
        "splits": dict(counts),
        "settings": dict(settings),
        "timing": {},
    }


def describe_model(model: Model, name: str) -> dict[str, Any]:
    """What the manifest says of a model that settings call `name`."""
    commit = getattr(model.hf.config, "_commit_hash", None)
    return {
        "name": name,
        "fingerprint": model.fingerprint,
        "architecture": type(model.hf).__name__,
        "dtype": model.dtype,
        "n_layers": model.n_layers,
        "d_model": model.d_model,
        "commit": commit,
        "files": digest_of(model.name, commit),
        "writers": discovered_writers(model.hf),
    }
