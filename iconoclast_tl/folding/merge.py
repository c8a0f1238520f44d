"""A fold as plain weights, in memory: a model that needs no hooks and no PEFT.

W' = W + BA and b' = b + β are computed in float32 at least and rounded once to the model's dtype. The base model is not
touched: the merged one shares all tensors that the edit leaves alone. `folding.merge_files` writes the same to disk.

A layer without a bias cannot carry β. Where the configuration can switch biases on (Llama's `attention_bias` and
`mlp_bias`), the merged model has them, zero everywhere else; where it cannot, only the adapter can carry the edit.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from iconoclast_tl.architecture.offloading import is_offloaded
from iconoclast_tl.architecture.writers import Writer
from iconoclast_tl.edits.factors import Factors
from iconoclast_tl.folding.fold import Fold, ParameterChange
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.storage import replacing_folder
from iconoclast_tl.models.model import Model
from iconoclast_tl.models.source import is_gguf
from iconoclast_tl.models.twin import share

BIAS_FLAGS = ("attention_bias", "mlp_bias")


def save_merged(fold: Fold, folder: Path) -> None:
    """Write the merged model and its tokenizer into `folder`, atomically, as `transformers` reads them.

    Raises `UserError` for a model that is offloaded, and where a bias changes that the architecture cannot have.
    """
    model = fold.model
    if is_offloaded(model.hf):
        raise offloaded(model)
    merged = merged_model(fold)
    with replacing_folder(folder) as temporary:
        merged.save_pretrained(str(temporary))
        model.tokenizer.save_pretrained(str(temporary))


def offloaded(model: Model) -> UserError:
    """What is said where a model cannot be merged since it is not in memory."""
    in_files = ", or use the command `merge`, which edits the model's files one matrix at a time"
    return UserError(
        "an offloaded model cannot be merged in memory",
        got="weights on the disk, or on the CPU until they are needed",
        mend=f"save the adapter{'' if is_gguf(model.name) else in_files}",
    )


def merged_model(fold: Fold, stored: torch.dtype | None = None) -> Any:
    """The merged model in memory, sharing every unedited tensor with the base.

    stored: edited tensors are rounded to this dtype, as files that hold it would round them. Raises `UserError` where a
    bias changes that the architecture cannot have.
    """
    model = fold.model
    replaced: dict[str, Tensor] = {}
    lacks_bias = False
    for change in fold.changes:
        weight, bias = edited_parameters(change, model)
        parts = change.matrix.stored(weight, bias)
        replaced |= {name: part.to(stored or part.dtype).to(part.dtype) for name, part in parts.items()}
        lacks_bias |= change.has_bias and change.matrix.bias is None
    if not lacks_bias:
        return share(model.hf, None, replaced)
    require_mergeable_bias(model.hf, [Writer(change.matrix.module, (change.matrix,)) for change in fold.changes])
    like = next(model.hf.parameters())
    zeros = {name: torch.zeros(shape).to(like) for name, shape in added_biases(model.hf).items()}
    return share(model.hf, _with_biases(model.hf), {**zeros, **replaced})


def edited_parameters(
    change: ParameterChange, model: Model
) -> tuple[Float[Tensor, "expert d_model d_in"], Float[Tensor, "expert d_model"] | None]:
    """W' and b' of every expert in the model's dtype; b' is None where no bias changes."""
    weights, biases = change.matrix.read(model.hf)
    before = [None] * len(weights) if biases is None else list(biases)
    edited = [apply_factors(*of_one) for of_one in zip(weights, before, change.factors, strict=True)]
    if not change.has_bias:
        return torch.stack([weight for weight, _ in edited]), None
    after = [bias if bias is not None else old for (_, bias), old in zip(edited, before, strict=True)]
    like = next(bias for bias in after if bias is not None)
    filled = [torch.zeros_like(like) if bias is None else bias for bias in after]
    return torch.stack([weight for weight, _ in edited]), torch.stack(filled)


def apply_factors(
    weight: Float[Tensor, "d_model d_in"], bias: Float[Tensor, "d_model"] | None, change: Factors
) -> tuple[Float[Tensor, "d_model d_in"], Float[Tensor, "d_model"] | None]:
    """W' = W + BA and b' = b + β, in the factors' dtype, rounded once to W's; b' is None where no bias changes."""
    edited = weight.to(change.a, copy=True).addmm_(change.b, change.a).to(weight)
    if change.bias is None:
        return edited, None
    return edited, (change.bias if bias is None else bias.to(change.bias) + change.bias).to(weight)


def require_mergeable_bias(hf: Any, writers: Iterable[Writer]) -> None:
    """Raise `UserError` where one of these has no bias and the configuration cannot switch it on."""
    lacking = {f"{m.module}.bias" for writer in writers for m in writer.matrices if m.bias is None}
    if not lacking or (all(hasattr(hf.config, flag) for flag in BIAS_FLAGS) and lacking <= added_biases(hf).keys()):
        return
    raise UserError(
        f"merged weights of {type(hf).__name__} cannot carry this edit's bias",
        got="an edit that adds a constant (affine, or an addition) and layers without a bias",
        want=f"a configuration with {' and '.join(BIAS_FLAGS)} that gives them one",
        mend="use the adapter, which carries it, or add no constant (edit.affine=false)",
    )


def added_biases(hf: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of every bias that the model has once its configuration asks for them."""
    from accelerate import init_empty_weights

    with init_empty_weights():
        skeleton = type(hf)._from_config(_with_biases(hf))
    present = hf.state_dict()
    return {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items() if name not in present}


def _with_biases(hf: Any) -> Any:
    config = copy.deepcopy(hf.config)
    for flag in BIAS_FLAGS:
        setattr(config, flag, True)
    return config
