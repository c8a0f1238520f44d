"""A fold as plain weights: a model that `transformers` loads without knowing of any edit.

W' = W + BA and b' = b + β are computed in float32 at least and rounded once to the model's dtype. The base model is not
touched: the merged one shares all tensors that the edit leaves alone.

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

from iconoclast_tl.folding.fold import Change, Fold
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.storage import replacing_folder
from iconoclast_tl.models.loading import LoadedModel
from iconoclast_tl.models.twin import share
from iconoclast_tl.models.writers import Writer

BIAS_FLAGS = ("attention_bias", "mlp_bias")


def save_merged(merged: Any, model: LoadedModel, folder: Path) -> None:
    """Write a merged model's weights and configuration, and the tokenizer, atomically."""
    with replacing_folder(folder) as temporary:
        merged.save_pretrained(str(temporary))
        model.tokenizer.save_pretrained(str(temporary))


def merged_model(fold: Fold, model: LoadedModel) -> Any:
    """The merged model in memory, sharing every unedited tensor with the base.

    Raises `UserError` where a bias changes that the architecture cannot have.
    """
    replaced: dict[str, Tensor] = {}
    lacks_bias = False
    for change in fold.changes:
        weight, bias = edited_parameters(change, model)
        replaced |= change.matrix.stored(weight, bias)
        lacks_bias |= change.has_bias and change.matrix.bias is None
    if not lacks_bias:
        return share(model.hf, None, replaced)
    config = _with_biases(model, fold)
    return share(model.hf, config, {**_zero_biases(model, config), **replaced})


def edited_parameters(
    change: Change, model: LoadedModel
) -> tuple[Float[Tensor, "expert d_model d_in"], Float[Tensor, "expert d_model"] | None]:
    """W' and b' of every expert in the model's dtype; b' is None where no bias changes."""
    weights, biases = change.matrix.read(model.hf)
    edited = torch.stack([(w.to(one.a) + one.b @ one.a).to(w) for w, one in zip(weights, change.factors, strict=True)])
    if not change.has_bias:
        return edited, None
    before = torch.zeros_like(weights[:, :, 0]) if biases is None else biases
    added = [
        torch.zeros_like(b) if one.bias is None else one.bias for b, one in zip(before, change.factors, strict=True)
    ]
    return edited, torch.stack([(b.to(more) + more).to(b) for b, more in zip(before, added, strict=True)])


def require_mergeable_bias(model: LoadedModel, writers: Iterable[Writer]) -> None:
    """Raise `UserError` where one of these has no bias and the configuration cannot switch one on."""
    lacking = any(matrix.bias is None for writer in writers for matrix in writer.matrices)
    if lacking and not all(hasattr(model.hf.config, flag) for flag in BIAS_FLAGS):
        raise UserError(
            f"merged weights of {type(model.hf).__name__} cannot carry this edit's bias",
            got="an affine edit and layers without a bias",
            want=f"a configuration with {' and '.join(BIAS_FLAGS)}",
            mend="use the adapter, which carries it, or edit.affine=false",
        )


def _with_biases(model: LoadedModel, fold: Fold) -> Any:
    require_mergeable_bias(model, [Writer(change.matrix.module, (change.matrix,)) for change in fold.changes])
    config = copy.deepcopy(model.hf.config)
    for flag in BIAS_FLAGS:
        setattr(config, flag, True)
    return config


def _zero_biases(model: LoadedModel, config: Any) -> dict[str, Tensor]:
    """Zeros for every bias that `config` adds to the model."""
    from accelerate import init_empty_weights

    with init_empty_weights():
        skeleton = type(model.hf)._from_config(config)
    present = model.hf.state_dict()
    like = next(model.hf.parameters())
    return {
        name: torch.zeros(tensor.shape, dtype=like.dtype, device=like.device)
        for name, tensor in skeleton.state_dict().items()
        if name not in present
    }
