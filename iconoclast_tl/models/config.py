"""Settings of a model: which one, and how it is held in memory."""

from __future__ import annotations

from typing import Annotated, Literal

from iconoclast_tl.foundation.stage_config import Changeable, StageConfig


class ModelConfig(StageConfig):
    """Which model, and how it is held in memory."""

    name: str = "organism"
    """A hub id, a folder, a GGUF file (`FILE.gguf`; on the hub `owner/name:FILE.gguf`), or `organism` for the one that
    is shipped."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    """`auto`: float32 on CPU; on a GPU the first of bfloat16, float16, float32 that gives finite logits."""
    device: Annotated[str, Changeable] = "auto"
    """`auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1`, `mps`."""
    device_map: Annotated[str | None, Changeable] = None
    """accelerate's placement over several devices, for example `auto`; overrides `device`."""
    max_memory: Annotated[dict[str, str] | None, Changeable] = None
    """With `device_map`: how much may go where, such as {"0": "20GiB", "cpu": "60GiB"}; the rest goes to the disk."""
    quantization: Literal["none", "4bit", "8bit"] = "none"
    """bitsandbytes for everything but the fold, which reads full-precision weights. `4bit`: NF4; `8bit`: LLM.int8()."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Off unless you have read it."""
