"""A fold as a PEFT LoRA adapter on exactly the edited modules.

α equals the rank everywhere, so that LoRA's scale α/r is 1 and ΔW = BA as it stands. A bias change goes into
`lora_bias`: the adapter can carry it also where the base layer has no bias.

Fused experts are `target_parameters`, which PEFT does not combine with `lora_bias`: what has a bias to change beside
them is saved whole (`modules_to_save`). Linears of their name beside them (shared experts, dense layers) are named as
parameters, too: as modules PEFT takes them for experts of an older layout, and leaves them out.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from iconoclast_tl.architecture.writers import known_writers
from iconoclast_tl.folding.fold import Fold, ParameterChange
from iconoclast_tl.folding.merge import edited_parameters
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.storage import replacing_folder
from iconoclast_tl.models.adapter import WRAPPED, unloaded_after
from iconoclast_tl.models.model import Model

Carrier = Literal["module", "parameter", "whole"]
"""How PEFT carries a change: beside a linear, beside a parameter, or as the linear's weights whole."""


def save_adapter(fold: Fold, folder: Path) -> None:
    """Write the adapter atomically, readable by plain `peft`; the model is left as it was.

    Raises `UserError` where it would have to give a layer a bias that PEFT cannot give it.
    """
    from peft import get_peft_model

    model, carriers = fold.model, _carriers(fold)
    _require_carriers(fold, carriers)
    with unloaded_after(model.hf), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*lora_bias=True.*")  # the base has no bias: as intended
        warnings.filterwarnings("ignore", message=".*have invalid shape.*")  # a bias is one-dimensional
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")  # Conv1D: PEFT finds out by itself
        warnings.filterwarnings("ignore", message=".*base_model_name_or_path.*")  # the user's name for the model stays
        wrapped = get_peft_model(model.hf, _config(fold, carriers))
        for change in fold.changes:
            _set(wrapped, change, carriers[change.matrix.path], model)
        with replacing_folder(folder) as temporary:
            wrapped.save_pretrained(str(temporary))


def _config(fold: Fold, carriers: Mapping[str, Carrier]) -> Any:
    from peft import LoraConfig

    carried = [(change, carriers[change.matrix.path]) for change in fold.changes]
    ranks = {change.matrix.module: change.rank for change, how in carried if how == "module"}
    whole = [change.matrix.module for change, how in carried if how == "whole"]
    parameters = [path for change, how in carried if how == "parameter" for path in _parameter_paths(change)]
    largest = max(change.rank for change in fold.changes)
    pattern = {f"^{re.escape(path)}$": rank for path, rank in ranks.items() if rank != largest}
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=largest,
        lora_alpha=largest,
        rank_pattern=dict(pattern),
        alpha_pattern=dict(pattern),
        target_modules=sorted(ranks),
        target_parameters=parameters or None,
        modules_to_save=whole or None,
        lora_dropout=0.0,
        bias="none",
        lora_bias=fold.has_bias and not parameters,
        inference_mode=True,
        base_model_name_or_path=fold.model.name,
    )


def _require_carriers(fold: Fold, carriers: Mapping[str, Carrier]) -> None:
    """Only what is carried as a module gets a bias that the base lacks: beside experts PEFT adds none."""
    for change in fold.changes:
        if change.has_bias and change.matrix.bias is None and carriers[change.matrix.path] != "module":
            raise UserError(
                f"an adapter cannot give {change.matrix.module} a bias",
                got="a constant to add there, no bias in the base, and experts edited beside it or of the same name",
                want="a layer that has a bias, or a model without experts",
                mend="keep it a preview",
            )


def _carriers(fold: Fold) -> dict[str, Carrier]:
    """How PEFT carries each change, by the path of its parameter."""
    matrices = [matrix for writer in known_writers(fold.model.hf).values() for matrix in writer.matrices]
    fused = {matrix.parameter for matrix in matrices if matrix.n_experts is not None}
    beside_experts = any(change.matrix.n_experts is not None for change in fold.changes)
    return {change.matrix.path: _carrier(change, fused, beside_experts) for change in fold.changes}


def _carrier(change: ParameterChange, fused: Collection[str], beside_experts: bool) -> Carrier:
    """fused: names of parameters in which experts are fused. beside_experts: whether any such is edited, too."""
    if change.matrix.n_experts is not None:
        return "parameter"
    if change.has_bias and beside_experts:
        return "whole"
    return "parameter" if change.matrix.module.rpartition(".")[2] in fused else "module"


def _parameter_paths(change: ParameterChange) -> list[str]:
    bias = change.matrix.bias_path
    return [change.matrix.path, *([bias] if change.has_bias and bias else [])]


@torch.no_grad()
def _set(wrapped: Any, change: ParameterChange, how: Carrier, model: Model) -> None:
    layer = wrapped.get_submodule(WRAPPED + change.matrix.module)
    if how == "parameter":
        _set_parameter(layer, change)
    elif how == "whole":
        (weight,), bias = edited_parameters(change, model)
        assert bias is not None  # it changes: that is why it is saved whole
        _fill(layer.modules_to_save["default"], "weight", weight.T if change.matrix.transposed else weight)
        _fill(layer.modules_to_save["default"], "bias", bias[0])
    else:
        _set_linear(layer, *((one.a, one.b, one.bias) for one in change.factors))


def _set_linear(layer: Any, factors: tuple[Tensor, Tensor, Tensor | None]) -> None:
    a, b, bias = factors
    lora_a, lora_b = layer.lora_A["default"], layer.lora_B["default"]
    _fill(lora_a, "weight", a)
    _fill(lora_b, "weight", b)
    if lora_b.bias is not None:
        _fill(lora_b, "bias", torch.zeros_like(b[:, 0]) if bias is None else bias)


def _set_parameter(layer: Any, change: ParameterChange) -> None:
    """PEFT keeps the experts' factors side by side: A as (expert · r, d_in), B as (d_model, r · expert)."""
    by_name = {}
    while hasattr(layer, "parameter_name"):  # of one module several parameters are wrapped one around the other
        by_name[layer.parameter_name] = layer
        layer = layer.base_layer
    weights = by_name[change.matrix.parameter]
    rank = weights.r["default"]
    a = torch.stack([_padded(one.a, rank) for one in change.factors])
    b = torch.stack([_padded(one.b.mT, rank).mT for one in change.factors], dim=-1)
    _fill(weights.lora_A["default"], "weight", a.flatten(0, 1))
    _fill(weights.lora_B["default"], "weight", b.flatten(1, 2))
    if change.has_bias and change.matrix.bias is not None:
        biases = by_name[change.matrix.bias]
        shift = torch.stack([torch.zeros_like(one.b[:, 0]) if one.bias is None else one.bias for one in change.factors])
        u, s, vh = torch.linalg.svd(shift, full_matrices=False)  # its rows lie in the span of the directions
        _fill(biases.lora_A["default"], "weight", _padded(vh[:rank], rank))
        _fill(biases.lora_B["default"], "weight", _padded((u * s)[:, :rank].mT, rank).mT)


def _fill(module: nn.Module, name: str, values: Tensor) -> None:
    """Give a parameter its values; beside weights that are offloaded PEFT makes one without any."""
    parameter = getattr(module, name)
    if parameter.is_meta:
        setattr(module, name, nn.Parameter(values.to(parameter.dtype).contiguous(), requires_grad=False))
    else:
        parameter.copy_(values)


def _padded(rows: Tensor, n: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros(n - len(rows), rows.shape[1])])
