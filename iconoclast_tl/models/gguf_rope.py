"""How rotary positions are stretched for longer contexts: what transformers does not read from a GGUF file.

A linear stretching is one number of the metadata: of all layers, or (Gemma 3) of those that attend to everything. Llama
3.1 and later divide the rotary frequencies by factors that a GGUF file holds as the tensor `rope_freqs.weight`, and not
as the settings that a configuration has; these are found by what they compute. Whatever else a file says is refused,
since without it every answer would be a little wrong.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.gguf_header import GgufHeader, quoted

ROPE_TENSORS: Final = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Constants for positions, which are no weights of the model."""
LLAMA3: Final = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What all models of this kind share; `factor` is 8 or 32."""


def set_rope(config: Any, header: GgufHeader) -> None:
    """Give a configuration the stretching that the file means; `UserError` where it cannot say it."""
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict):
        return  # a model without
    rope = rope.get("full_attention", rope)  # Gemma: one for every kind of layer
    if rope.get("rope_type", "default") != "default":
        return  # which transformers knows of this architecture
    held = [one for one in header.tensors if one.name in ROPE_TENSORS]
    scaling = header.text(f"{header.architecture}.rope.scaling.type") or "none"
    factor = header.number(f"{header.architecture}.rope.scaling.factor")
    if scaling == "linear" and factor is not None and factor >= 1 and not held:
        rope |= {"rope_type": "linear", "factor": float(factor)}
        return
    if scaling != "none":
        raise _not_read(header, f"rope.scaling.type {quoted(scaling)}")
    if not held:
        return
    if len(held) > 1 or held[0].kind != 0:
        raise _not_read(header, ", ".join(one.name for one in held))
    factors = np.fromfile(header.path, "<f4", held[0].n_elements, offset=held[0].offset)
    if np.all(factors == 1):
        return
    rope |= {"rope_type": "llama3", "factor": float(factors.max()), **LLAMA3}
    if rope is not config.rope_parameters or not _gives(config, rope["rope_theta"], factors):
        raise _not_read(header, f"{held[0].name}, which no settings of Llama 3 give")


def _gives(config: Any, theta: float, factors: NDArray[Any]) -> bool:
    """Whether these settings divide the frequencies by these factors."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    width = 2 * len(stretched)
    frequencies = theta ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    return len(factors) == len(stretched) and bool(
        torch.allclose(frequencies / stretched, torch.from_numpy(factors.copy()), rtol=1e-3)
    )


def _not_read(header: GgufHeader, got: str) -> UserError:
    return UserError(
        f"{header.path} stretches its positions in a way that transformers does not read from a GGUF file",
        got=got,
        want="positions as they are, or stretched linearly or as in Llama 3",
        mend="name the model that the file was made from",
    )
