"""What a model's name refers to: checked before transformers reads weights, so that a mistake is one clear line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.storage import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""A model in one file, and what says which tensor is in which of several."""
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "spiece.model")
DEQUANTISED = ("mxfp4",)
"""Formats of stored weights that transformers makes full-precision weights of on loading."""
GGUF = ".gguf"
_ON_HUB = re.compile(r"([\w.-]+/[\w.-]+):([^:]+\.gguf)", re.IGNORECASE)


def is_gguf(name: str) -> bool:
    """Whether a model's name is that of a GGUF file, on the disk or (`owner/name:FILE.gguf`) on the hub."""
    path = Path(name).expanduser()
    return not path.is_dir() and (path.is_file() or name.lower().endswith(GGUF))


def gguf_file(name: str, revision: str | None = None) -> Path | None:
    """The GGUF file that a model's name refers to, fetched from the hub if need be; None for a folder or hub id.

    Raises `UserError` for a file that cannot be had.
    """
    path = Path(name).expanduser()
    if not is_gguf(name):
        return None
    if path.is_file():
        return path
    on_hub = _ON_HUB.fullmatch(name)
    if on_hub is None or ".." in on_hub[2].split("/"):
        raise UserError(f"there is no GGUF file {name}", want="a file, or owner/name:FILE.gguf for one on the hub")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(on_hub[1], on_hub[2], revision=revision))
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        line = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"cannot have the GGUF file {name}", got=line, want="a file that the hub has") from error


def hub_id(name: str) -> str:
    """A model's name without the file that it names on the hub."""
    on_hub = _ON_HUB.fullmatch(name)
    return on_hub[1] if on_hub and not Path(name).expanduser().is_file() else name


def short_name(name: str) -> str:
    """The last part of a model's name, without `.gguf`: what a folder can be called."""
    last = Path(name).expanduser().resolve().name
    return last.rpartition(":")[2][: -len(GGUF)] if is_gguf(name) and last.lower().endswith(GGUF) else last


def base_of_adapter(name: str) -> str | None:
    """The model that a folder with an adapter and no model belongs to; None for everything else.

    Raises `UserError` for an adapter that does not say.
    """
    path = Path(name).expanduser()
    file = path / "adapter_config.json"
    if not file.is_file() or (path / "config.json").is_file():
        return None
    base = read_json(file).get("base_model_name_or_path")
    if not base:
        raise UserError(f"{name} is an adapter that does not say of which model", mend="pass its model as --model")
    return str(base)


def require_complete_folder(name: str) -> None:
    """Say what a local folder lacks; a hub id passes."""
    path = Path(name).expanduser()
    if path.is_file():
        raise UserError(f"{name} is a file", want="a folder or a hub id")
    if not path.is_dir():
        if path.is_absolute() or name.startswith((".", "~")):
            raise UserError(f"there is no model folder {name}", want="a folder or a hub id")
        return
    if not (path / "config.json").is_file():
        _require_no_gguf(name, path)
        raise UserError(f"{name} is not a model folder", got="no config.json", want="a Hugging Face model folder")
    if not any(any(path.glob(pattern)) for pattern in WEIGHT_FILES):
        _require_no_gguf(name, path)
        raise UserError(f"{name} has no weights", got="no *.safetensors", want="weights as safetensors")
    if not any((path / file).is_file() for file in TOKENIZER_FILES):
        raise UserError(f"{name} has no tokenizer", got="no tokenizer.json", mend="save the tokenizer there too")
    _require_shards(name, path)


def _require_no_gguf(name: str, path: Path) -> None:
    """Of a folder of GGUF files one must be named: they are whole models, of different precision."""
    if files := sorted(file.name for file in path.iterdir() if file.suffix.lower() == GGUF):
        others = f" and {len(files) - 8} more" if len(files) > 8 else ""
        raise UserError(
            f"{name} is a folder of GGUF files",
            got=", ".join(files[:8]) + others,
            want="one of them",
            mend=f"pass {path / files[0]}",
        )


def require_causal(name: str, config: Any, quantization: str = "none") -> None:
    """Raise `UserError` for the configuration of what is no causal language model, or is stored quantised."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    if config.is_encoder_decoder:
        raise UserError(
            f"{name} is an encoder-decoder model", got=f"model_type {config.model_type}", want="a decoder alone"
        )
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        raise UserError(f"{name} is an encoder", got=f"model_type {config.model_type}", want="a causal language model")
    stored = getattr(config, "quantization_config", None) or {}
    method = stored.get("quant_method") if isinstance(stored, dict) else getattr(stored, "quant_method", None)
    method = getattr(method, "value", method)
    if stored and (method not in DEQUANTISED or quantization != "none"):
        raise UserError(
            f"the weights of {name} are stored quantised",
            got=method,
            want="full-precision weights",
            mend="name the model that it was made from; --set model.quantization=4bit quantises that on loading",
        )


def _require_shards(name: str, path: Path) -> None:
    """Every tensor that the index names must be in its shard: transformers only looks which files there are."""
    from safetensors import SafetensorError, safe_open

    index = path / INDEX
    if not index.is_file() or (path / SINGLE).is_file():  # one file is taken before an index
        return
    try:
        places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index} is damaged", got=error, mend="fetch it again") from error
    for shard in sorted(set(places.values())):
        wanted = {tensor for tensor, place in places.items() if place == shard}
        try:
            with safe_open(path / shard, framework="pt") as file:
                missing = sorted(wanted - set(file.keys()))
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot read {shard} of {name}", got=error, mend="fetch it again") from error
        if missing:
            raise UserError(
                f"{shard} of {name} lacks tensors that its index names",
                got=f"{len(missing)} missing, first {missing[0]}",
                mend="fetch the model again",
            )
