"""How many rows fit into memory at once: found by doubling, once a model, and remembered.

A forward pass over n rows needs about a + b·n bytes. Batches of 1, 2, 4, … rows are tried until as many as are ever
asked for would fit in any case, the next would not fit, or two steps agree on b; from then on the line is followed.
What is remembered is the line and not the number of rows: how much memory is free differs from day to day.
Differences that are lost in the noise of the process's size are not believed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import torch
from pydantic import Field

from iconoclast_tl.execution.head import final_states, head_logits
from iconoclast_tl.execution.memory import Meter
from iconoclast_tl.execution.teacher_forcing import HELD
from iconoclast_tl.foundation.progress import Track, silent
from iconoclast_tl.foundation.storage import write_json
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.tokens import TokenBatch

BatchSize = Annotated[int, Field(ge=1)] | Literal["auto"]
"""Rows in one forward pass; `auto`: as many as memory has room for."""
MOST: Final = 128
"""Rows that are ever worked on at once: beyond that a batch gains nothing on two cores, and responses end unevenly."""
UNMEASURED: Final = 32
"""Rows where memory cannot be measured."""
SHARE: Final = 0.7
"""Of the free memory that a batch may take; the rest is for what grows beside it, and for fragments."""
ON_CPU: Final = 0.6
"""Of the size of the model's weights that a batch may take on the CPU, where more rows gain little beyond that."""
LITTLE: Final = 256 * 2**20
"""Bytes that a batch may take on the CPU in any case."""
AGREES: Final = 0.1
"""Relative difference of two steps' b at which the line is followed."""
NOISE: Final = 64 * 2**20
"""Bytes under which a difference says nothing: a process's size moves by as much for other reasons."""
LENGTHS: Final = 64
"""Tokens to a multiple of which the length of a row is rounded up, so that similar prompts share a measurement."""


@dataclass(frozen=True)
class Line:
    """Bytes that a batch of n rows takes: `fixed + per_row · n`."""

    fixed: float
    per_row: float
    lasting: bool = True
    """Whether it is the model's own, and not what another process left of the memory."""

    def rows(self, free: int) -> int:
        """The largest power of two that takes no more than its share of `free`, from 1 to `MOST`."""
        rows = MOST
        while rows > 1 and self.fixed + self.per_row * rows > SHARE * free:
            rows //= 2
        return rows


@dataclass(frozen=True)
class Fit:
    """A batch size, and why."""

    rows: int
    bytes_per_row: float | None
    """None where it was not measured."""
    free: int | None


def fitting(model: Model, length: int, kept: int, track: Track = silent) -> Fit:
    """How many rows of `length` tokens fit, if the logits of `kept` positions are looked at.

    The pass that is measured holds what collection, scoring and generation hold at most: the cache of keys and values
    over all tokens, and log-probabilities in float32 beside those of the base. No hooks may be on.
    """
    devices = {parameter.device for parameter in model.hf.parameters() if not parameter.is_meta} or {model.device}
    if not Meter.can_measure(devices):
        return Fit(UNMEASURED, None, None)
    length = -(-length // LENGTHS) * LENGTHS
    if model.context_length is not None:
        length = min(length, model.context_length)
    meter = Meter(devices)
    if {device.type for device in devices} == {"cpu"}:
        row, most = row_bytes(model, length), max(ON_CPU * _weight_bytes(model), LITTLE)
        if most <= SHARE * meter.free:
            return Fit(Line(0.0, row).rows(int(most / SHARE)), row, meter.free)
    key = _key(model, length, kept)
    line = _remembered(key)
    if line is None:
        kept = min(kept, length)
        line = measure_line(lambda rows: meter.peak(lambda: _pass(model, rows, length, kept)), meter.free, track)
        if line.lasting:
            _remember(key, line)
    return Fit(line.rows(meter.free), line.per_row, meter.free)


def row_bytes(model: Model, length: int) -> float:
    """About what a row of `length` tokens takes: keys and values of every layer, and what is computed in one."""
    config, hf = model.hf.config.get_text_config(), model.hf
    heads = getattr(config, "num_attention_heads", 1)
    of_keys = (getattr(config, "num_key_value_heads", None) or heads) / heads * model.d_model
    inner = getattr(config, "intermediate_size", None) or 4 * model.d_model
    numbers = 2 * of_keys * model.n_layers + 4 * model.d_model + 3 * inner
    return float(length * numbers * hf.dtype.itemsize)


def _weight_bytes(model: Model) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.hf.parameters())


def measure_line(peak: Callable[[int], int], free: int, track: Track = silent) -> Line:
    """The line through what batches of 1, 2, 4, … rows take; `peak` tells it, or runs out of memory."""
    used, doublings = list[int](), [2**step for step in range(MOST.bit_length())]
    for rows in track(doublings, "batch size", len(doublings)):
        try:
            used.append(peak(rows))
        except torch.OutOfMemoryError:
            if not used:
                raise
            torch.cuda.empty_cache()
            # There is less than was said to be free, perhaps for this moment only: half of this fits.
            return Line(0.0, SHARE * free / (rows // 2), lasting=False)
        if used[-1] >= NOISE and used[-1] * (MOST / rows) <= SHARE * free:
            return Line(0.0, used[-1] / rows)  # a batch of m·n rows takes at most m times what one of n takes
        line = _last(used)
        # Of one batch alone it is not known what part of it grows: two rows are tried where twice as much fits at all.
        if line.fixed + line.per_row * 2 * rows > (free if rows == 1 else SHARE * free) or _agree(used):
            break
    return _last(used)


def _last(used: list[int]) -> Line:
    """Through the last two; through the origin and the only one."""
    rows = 2 ** (len(used) - 1)
    return Line(0.0, float(used[0])) if len(used) == 1 else _through(rows // 2, used[-2], rows, used[-1])


def _through(n: int, at_n: int, m: int, at_m: int) -> Line:
    slope = max(at_m - at_n, 0) / (m - n)
    return Line(max(at_m - slope * m, 0.0), slope)


def _agree(used: list[int]) -> bool:
    if len(used) < 3 or used[-1] - used[-2] < NOISE:
        return False
    before, after = _last(used[:-1]).per_row, _last(used).per_row
    return abs(after - before) <= AGREES * after


@torch.no_grad()
def _pass(model: Model, rows: int, length: int, kept: int) -> None:
    ids = torch.full((rows, length), 1)
    batch = TokenBatch(tuple(range(rows)), ids, torch.ones_like(ids))
    states = final_states(model, {**model.inputs(batch), "use_cache": True}, kept)
    found = head_logits(model, states.reshape(-1, states.shape[-1])[:HELD]).log_softmax(-1)
    (found.exp() * found).sum(-1)  # as KL(base ‖ edited) holds the base's beside these


def _key(model: Model, length: int, kept: int) -> str:
    """Whatever the line depends on."""
    import transformers

    devices = sorted({str(parameter.device) for parameter in model.hf.parameters()})
    about = [model.fingerprint, model.dtype, model.quantization, devices, length, kept]
    versions = [torch.__version__, transformers.__version__]
    return hashlib.sha256(json.dumps([about, versions]).encode()).hexdigest()[:32]


def _file() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "iconoclast_tl" / "batch_sizes.json"


def _all_remembered() -> dict[str, dict[str, float]]:
    try:
        found = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):  # nothing there, or damaged: it is only a cache
        return {}
    return found if isinstance(found, dict) else {}


def _remembered(key: str) -> Line | None:
    try:
        known = _all_remembered()[key]
        return Line(known["fixed"], known["per_row"])
    except (KeyError, TypeError):
        return None


def _remember(key: str, line: Line) -> None:
    from iconoclast_tl.foundation.errors import UserError

    with suppress(UserError):  # where nothing can be written it is measured again
        write_json(_file(), {**_all_remembered(), key: {"fixed": line.fixed, "per_row": line.per_row}})
