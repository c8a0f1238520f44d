"""Weights that lie on the CPU or the disk and are fetched when their module runs: accelerate's offloading.

Such a parameter is on the device `meta` until then. Whoever reads weights does so within `present`.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def is_offloaded(hf: nn.Module) -> bool:
    """Whether any parameter of the model is fetched when it is needed."""
    return hasattr(hf, "hf_device_map") and any(parameter.is_meta for parameter in hf.parameters())


@contextmanager
def present(module: nn.Module) -> Iterator[None]:
    """The module's own parameters, where it computes; they may be kept beyond the block, but not changed."""
    if not any(parameter.is_meta for parameter in module.parameters(recurse=False)):
        yield
        return
    from accelerate.utils import align_module_device

    with align_module_device(module):
        yield


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes."""
    parameter = next(module.parameters(), None)
    if parameter is not None and not parameter.is_meta:
        return parameter.device
    hook = getattr(module, "_hf_hook", None)
    found = getattr(hook, "execution_device", None)
    return torch.device("cpu" if found is None else found if isinstance(found, str | torch.device) else f"cuda:{found}")


def placement(device_map: str | Mapping[str, Any], max_memory: Mapping[str, str] | None) -> dict[str, Any]:
    """Arguments of `from_pretrained` that place a model over devices, and on the disk what does not fit."""
    named = (max_memory or {}).items()
    limits: dict[int | str, str] = {int(name) if name.isdigit() else name: size for name, size in named}
    return {"device_map": device_map, "max_memory": limits or None, "offload_folder": _folder()}


def _folder() -> str:
    """Where offloaded weights go that cannot be read from the model's own files; gone when the process ends.

    One for every load: another model's weights of the same names would take their places.
    """
    folder = tempfile.mkdtemp(prefix="iconoclast_tl-offload-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
