"""A TransformerLens twin over the pristine Hugging Face model, sharing its storage.

Wrapping a model in a `TransformerBridge` replaces its modules, after which saving and PEFT on it break silently. So a
second skeleton of the class is built without memory, and the first one's tensors are assigned to it: same storages, no
copy, and the original stays what it was.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from iconoclast_tl.models.model import Model
from iconoclast_tl.models.source import is_gguf
from iconoclast_tl.prompts.tokens import left_pad


@dataclass(frozen=True)
class Parity:
    """Whether the twin computes what the Hugging Face model computes."""

    ok: bool
    max_abs_logit_diff: float | None
    tolerance: float
    reason: str
    """Empty where `ok`; otherwise one line that says what differs."""


@dataclass(frozen=True)
class Twin:
    """A bridge whose logits were compared with the Hugging Face model's."""

    bridge: Any
    parity: Parity


def share(hf: Any, config: Any | None = None, replaced: Mapping[str, Tensor] | None = None) -> Any:
    """A second model over the same tensors, except those in `replaced` (by state-dict name).

    `config` builds the skeleton differently, for example with biases; its extra tensors must stand in `replaced`.
    """
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        # A configuration of its own: TransformerLens sets the attention implementation on the one it is given.
        skeleton = type(hf)._from_config(copy.deepcopy(config or hf.config), dtype=hf.dtype)
    state = {**hf.state_dict(keep_vars=True), **(replaced or {})}
    skeleton.load_state_dict(state, assign=True)
    if config is None:
        for name, buffer in hf.named_buffers():  # non-persistent buffers are in no state dict
            parent, _, leaf = name.rpartition(".")
            skeleton.get_submodule(parent)._buffers[leaf] = buffer
    skeleton.tie_weights()
    skeleton.generation_config = copy.deepcopy(hf.generation_config)
    skeleton.eval()
    skeleton.requires_grad_(False)
    return skeleton


def make_twin(model: Model) -> Twin | Parity:
    """Wrap a twin of `model` for TransformerLens and compare their logits.

    Returns the `Twin` where they agree; a `Parity` that says why not where TransformerLens does not know the
    architecture or computes something else. Callers then hook the Hugging Face modules instead.
    """
    tolerance = parity_tolerance(model.hf.dtype)
    if model.quantization != "none":
        return Parity(False, None, tolerance, "TransformerLens cannot share quantised weights")
    if model.hf.config.get_text_config() is not model.hf.config:
        # Its loader asks the hub for image processors, and installs packages into the running environment.
        return Parity(False, None, tolerance, "TransformerLens would load the other modalities from the hub")
    if len({parameter.device for parameter in model.hf.parameters()}) > 1:
        return Parity(False, None, tolerance, "TransformerLens would move a model that lies on several devices")
    try:
        bridge = _wrap(model)
        difference, largest = _compared_logits(model, bridge)
    except Exception as error:  # an unknown architecture ends in any kind of error inside TransformerLens
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        return Parity(False, None, tolerance, f"TransformerLens cannot wrap {type(model.hf).__name__}: {first_line}")
    tolerance = parity_tolerance(model.hf.dtype, largest)
    if not difference <= tolerance:
        reason = f"TransformerLens' logits differ by {difference:.3g} (tolerance {tolerance:.3g})"
        return Parity(False, difference, tolerance, reason)
    return Twin(bridge, Parity(True, difference, tolerance, ""))


def parity_tolerance(dtype: torch.dtype, largest: float = 10.0) -> float:
    """Largest logit difference that rounding explains, where the largest logit is `largest`.

    1e-5 of it in float32: measured 0 to 3e-6 at logits of 10 over the architectures that agree, 1.6e-4 at logits of 34
    in a model of 30 layers, and 3.0 where one is wrong. Half precision rounds each of some dozens of additions by its
    epsilon. Logits under 10 count as 10: what is rounded on the way is no smaller for that.
    """
    relative = 1e-5 if dtype in (torch.float32, torch.float64) else 10 * torch.finfo(dtype).eps
    return relative * max(largest, 10.0)


def _wrap(model: Model) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    twin = share(model.hf)
    if twin.config.architectures is None:  # TransformerLens chooses its adapter by it
        twin.config.architectures = [type(model.hf).__name__]
    with TemporaryDirectory() as place:
        bridge = TransformerBridge.boot_transformers(
            "local",
            hf_model=twin,
            tokenizer=_rereadable(model.tokenizer, place),
            device=str(model.device),
            dtype=model.hf.dtype,
        )
    bridge.eval()
    return bridge


def _rereadable(tokenizer: Any, place: str) -> Any:
    """A copy of the tokenizer: TransformerLens reads it anew from where it came from, and cannot from a GGUF file."""
    from transformers import AutoTokenizer

    if not is_gguf(str(tokenizer.name_or_path)):
        return copy.deepcopy(tokenizer)
    tokenizer.save_pretrained(place)
    return AutoTokenizer.from_pretrained(place)


def _compared_logits(model: Model, bridge: Any) -> tuple[float, float]:
    """The largest difference of any logit, and the largest logit."""
    vocabulary = int(model.hf.get_input_embeddings().weight.shape[0])
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(vocabulary, (n,), generator=generator).tolist() for n in (12, 7)]
    batch = left_pad(rows, model.pad_id)
    inputs = model.inputs(batch)
    with torch.no_grad():
        expected = model.hf(**inputs).logits
        actual = bridge(inputs.pop("input_ids"), **inputs, return_type="logits")
    real = batch.attention_mask.bool().to(expected.device)
    expected, actual = expected[real], actual.to(expected.device)[real]
    return float((expected - actual).abs().max()), float(expected.abs().max())
