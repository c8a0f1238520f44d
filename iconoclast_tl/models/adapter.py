"""A PEFT adapter on a model: loaded for a while, and taken off again without a trace."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from iconoclast_tl.architecture.offloading import device_of, is_offloaded
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.model import Model

WRAPPED = "base_model.model."
"""What PEFT puts before the path of a module."""


@contextmanager
def loaded_adapter(model: Model, folder: Path) -> Iterator[Any]:
    """The model with the adapter of `folder` as plain `peft` loads it; unloaded again when the block ends.

    Raises `UserError` for a folder that holds no adapter of this model.
    """
    if not (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder} is not an adapter", got="no adapter_config.json", want="a folder saved by peft")
    with unloaded_after(model.hf), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*lora_bias=True.*")
        try:
            wrapped = _load(model.hf, folder)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            first_line = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(
                f"cannot load the adapter {folder}", got=first_line, want=f"a PEFT adapter of {model.name}"
            ) from error
        wrapped.eval()
        _require_modules(model, wrapped, folder)
        yield wrapped


def _require_modules(model: Model, wrapped: Any, folder: Path) -> None:
    """PEFT passes over factors of modules that the model does not have, such as those of further layers."""
    from safetensors import safe_open

    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        return
    with safe_open(file, framework="pt") as opened:
        modules = {name.partition(".lora_")[0] for name in opened.keys() if ".lora_" in name}  # noqa: SIM118
    there = {name for name, _ in wrapped.named_modules()}
    if absent := sorted(modules - there):
        raise UserError(
            f"the adapter {folder} is of another model",
            got=f"factors for {absent[0].removeprefix(WRAPPED)}, which {model.name} does not have",
            want=f"an adapter of {model.name}",
        )


def _load(hf: Any, folder: Path) -> Any:
    """As `peft` loads it; beside offloaded weights in parts, since it would place the whole model anew in memory."""
    from peft import PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
    from peft.tuners.lora import LoraLayer
    from safetensors.torch import load_file

    if not is_offloaded(hf):
        return PeftModel.from_pretrained(hf, str(folder))
    wrapped = get_peft_model(hf, PeftConfig.from_pretrained(str(folder)))
    for module in wrapped.modules():
        if isinstance(module, LoraLayer):
            for part in (module.lora_A, module.lora_B):
                part.to_empty(device=device_of(module.get_base_layer()))
    set_peft_model_state_dict(wrapped, load_file(folder / "adapter_model.safetensors"))
    return wrapped


@contextmanager
def unloaded_after(hf: nn.Module) -> Iterator[None]:
    """Put back every module that PEFT replaced, and what it noted on the model, also after an error."""
    before = {name: dict(module._modules) for name, module in hf.named_modules()}
    requires = {name: parameter.requires_grad for name, parameter in hf.named_parameters()}
    attributes = set(vars(hf))
    try:
        yield
    finally:
        for name, children in before.items():
            hf.get_submodule(name)._modules.update(children)
        for name, parameter in hf.named_parameters():
            parameter.requires_grad_(requires[name])
        for attribute in set(vars(hf)) - attributes:
            delattr(hf, attribute)
