"""Activations of a run: collected once, kept in the run folder, and mapped from there."""

from __future__ import annotations

from iconoclast_tl.activations.collect import collect
from iconoclast_tl.activations.store import CONTENT, Activations, activation_key, load_activations
from iconoclast_tl.stages.workspace import Workspace


def collected(workspace: Workspace) -> Activations:
    """Residuals of train and val prompts at their last tokens, and the writers' means."""
    path, key, config = workspace.folder.activations, _key(workspace), workspace.settings.activations
    found = load_activations(path, key)
    if found is not None:
        return found
    with workspace.timed("collect"):
        return collect(
            workspace.model,
            workspace.contrast,
            to=path,
            positions=config.positions,
            batch_size=workspace.rows_at_once(config.batch_size),
            through=config.through,
            key=key,
            track=workspace.track,
            say=workspace.say,
        )


def _key(workspace: Workspace) -> str:
    return activation_key(
        model=workspace.model.fingerprint,
        dtype=workspace.model.dtype,
        quantization=workspace.settings.model.quantization,
        tokens=workspace.tokens_digest,
        positions=workspace.positions,
        kept=CONTENT,
    )
