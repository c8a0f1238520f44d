"""How many rows a run works on at once."""

from __future__ import annotations

from iconoclast_tl.evaluation.suite import EvaluationConfig
from iconoclast_tl.execution.batch_size import MOST, fitting
from iconoclast_tl.foundation.progress import Say, Track
from iconoclast_tl.models.model import Model
from iconoclast_tl.stages.run_folder import RunFolder


def batch_room(folder: RunFolder, model: Model, longest: int, config: EvaluationConfig, track: Track, say: Say) -> int:
    """The rows that memory has room for; measured once, and kept in the manifest, since batches round differently.

    longest: tokens of the longest prompt.
    """
    known = (folder.read_manifest() or {}).get("batch_size")
    if known is not None:
        return int(known)
    fit = fitting(model, longest + config.max_new_tokens, config.kl_length, track)
    if fit.bytes_per_row is not None and fit.rows < MOST:
        row, free = fit.bytes_per_row / 1e6, (fit.free or 0) / 1e9
        say(f"batches of {fit.rows}: a row takes {row:.0f} MB, {free:.1f} GB are free")
    folder.remember(batch_size=fit.rows)
    return fit.rows
