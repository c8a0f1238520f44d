"""The decoder's layers: where an architecture keeps the list of them."""

from __future__ import annotations

from typing import Any, Final

from torch import nn

from iconoclast_tl.architecture.names import child, misnamed, names_of
from iconoclast_tl.foundation.errors import UserError

_LISTS: Final = (
    "model.layers",
    "model.language_model.layers",
    "language_model.model.layers",
    "transformer.h",
    "gpt_neox.layers",
    "model.decoder.layers",
)


def decoder_layers(hf: nn.Module) -> nn.ModuleList:
    """The list of decoder layers; `UserError` for a layout that is not known."""
    return decoder_layer_list(hf)[1]


def decoder_layer_list(hf: Any) -> tuple[str, nn.ModuleList]:
    """The same with its path: where it is registered or known architectures have it, else the one list of as many
    layers in the decoder.
    """
    registered = names_of(hf).layers
    for path in _LISTS if registered is None else (registered,):
        found = child(hf, path)
        if isinstance(found, nn.ModuleList):
            return path, found
    if registered is not None:
        raise misnamed(hf, "the model", "list of layers", (registered,), hf)
    others = _other_lists(hf)
    if len(others) == 1:
        return others[0]
    raise UserError(
        f"the decoder layers of {type(hf).__name__} are not found",
        got=", ".join(path for path, _ in others) or "no list of as many modules as it has layers",
        want=f"one such list, or one of {', '.join(_LISTS)}",
    )


def _other_lists(hf: Any) -> list[tuple[str, nn.ModuleList]]:
    """Lists in the text decoder that have as many modules as the configuration says layers."""
    if not hasattr(hf, "get_decoder"):
        return []
    decoder, n_layers = hf.get_decoder(), hf.config.get_text_config().num_hidden_layers
    return [
        (path, module)
        for path, module in hf.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers and module in set(decoder.modules())
    ]
