"""Where a model's parameters lie in its safetensors files: read one by one, and overwritten in place in a copy.

Files do not always hold what a model holds. Names differ by a prefix or by what an older version called them, and the
experts that a model fuses into one parameter are often stored one by one. transformers knows how it reads them; here
its renaming says which tensors of the files are which parameter.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.tensor_file import DTYPES, raw_bytes
from iconoclast_tl.models.config import ModelConfig
from iconoclast_tl.models.failures import loading_errors, not_loaded
from iconoclast_tl.models.gguf_header import read_header
from iconoclast_tl.models.load import load_config
from iconoclast_tl.models.source import INDEX, SINGLE, gguf_file, is_gguf, require_causal, require_complete_folder

COPIED: Final = (
    "config.json",
    "generation_config.json",
    "*token*",
    "vocab*",
    "merges.txt",
    "*.model",
    "tekken.json",
    "chat_template*",
    "*processor_config.json",
    "*.py",
    "LICENSE*",
    "NOTICE*",
)
"""Files of a model that go with its weights."""
SAMPLED: Final = 64
"""Places of a file of which some bytes are looked at to know it again."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file."""

    file: str
    """Name of the file in the model's folder."""
    name: str
    """Its name there."""
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """Of its first byte in the file."""

    def read(self, folder: Path, index: int | None = None) -> Tensor:
        """Its values in the file of this name in `folder`; of one entry of its first axis where `index` is given."""
        from safetensors import safe_open

        with safe_open(folder / self.file, framework="pt") as file:
            tensor: Tensor = file.get_tensor(self.name) if index is None else file.get_slice(self.name)[index]
        return tensor

    def write(self, folder: Path, values: Tensor, index: int | None = None) -> None:
        """Put `values` in its place in the file of this name in `folder`, a copy of the one that was looked at."""
        shape = self.shape if index is None else self.shape[1:]
        if values.dtype != self.dtype or tuple(values.shape) != shape:
            raise ValueError(f"{self.name}: got {values.dtype} {tuple(values.shape)}, want {self.dtype} {shape}")
        data = raw_bytes(values)
        with (folder / self.file).open("r+b") as file:
            file.seek(self.offset + (index or 0) * data.nbytes)
            file.write(data)


def stored_parameters(hf: Any, folder: Path) -> dict[str, tuple[StoredTensor, ...]]:
    """The stored tensors of every parameter of `hf`, by its path: one, or one for every expert that is fused in it.

    Parameters that are stored in other ways (put together from parts, turned round) and dtypes other than 16, 32 and
    64 bit floats are left out.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    transforms = get_model_conversion_mapping(hf)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    parameters, prefix = dict(hf.state_dict()), hf.base_model_prefix
    found: dict[str, list[StoredTensor]] = {}
    for tensor in sorted(_tensors(folder), key=lambda tensor: dot_natural_key(tensor.name)):
        path, pattern = rename_source_key(tensor.name, renamings, converters, prefix, parameters)
        if path not in parameters and tensor.name in parameters:
            path, pattern = tensor.name, None
        if pattern is None or _only_stacks(by_pattern[pattern]):
            found.setdefault(path, []).append(tensor)
    return {path: tuple(tensors) for path, tensors in found.items() if path in parameters}


def weight_files(folder: Path) -> list[str]:
    """Names of the files that hold a model's weights."""
    if (folder / SINGLE).is_file():
        return [SINGLE]
    return sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))


def stored_folder(name: str, revision: str | None = None) -> Path:
    """The folder that holds a model's files: itself, or where the hub's were put, fetched if need be.

    Of a hub's repository only what makes the model: many hold the weights in several forms. Raises `UserError` for a
    hub id that cannot be had, and for files that are missing or damaged.
    """
    place = Path(name).expanduser()
    if not place.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        try:
            place = Path(snapshot_download(name, revision=revision, allow_patterns=[INDEX, *COPIED]))
            weights = weight_files(place) if (place / INDEX).is_file() else [SINGLE]
            place = Path(snapshot_download(name, revision=revision, allow_patterns=[INDEX, *COPIED, *weights]))
        except (OSError, ValueError, KeyError, HfHubHTTPError, HFValidationError) as error:
            line = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"cannot have the files of {name}", got=line, want="a folder or a hub id") from error
    require_complete_folder(str(place))
    return place


def digest_of(name: str, revision: str | None = None) -> str | None:
    """Knows the files of a model again that is a folder (`files_digest`) or a GGUF file; None for a hub id.

    revision: where the hub's file is one of a commit, so that nothing is fetched.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return files_digest(path)
    file = gguf_file(name, revision)
    return None if file is None else read_header(file).digest()


def files_digest(folder: Path) -> str:
    """SHA-256 over config.json and, of every file of weights, its length, its header and some of its bytes.

    Tells whether files are those that a run was made with; of 64 places, since a large model must not be read twice.
    """
    state = hashlib.sha256((folder / "config.json").read_bytes())
    for name in weight_files(folder):
        size = (folder / name).stat().st_size
        with (folder / name).open("rb") as file:
            state.update(f"{name} {size}".encode())
            state.update(file.read(8 + int.from_bytes(file.read(8), "little")))
            for place in range(SAMPLED):
                file.seek(place * size // SAMPLED)
                state.update(file.read(64))
    return state.hexdigest()


def skeleton(name: str, config: ModelConfig) -> Any:
    """The model of a folder, hub id or GGUF file without its weights (on the device `meta`): modules, names, shapes.

    Raises `UserError` for what `load_model` raises it for, as far as that can be told without weights.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    if not is_gguf(name):
        require_complete_folder(name)
    kind = load_config(name, config)
    require_causal(name, kind)
    try:
        with init_empty_weights(include_buffers=True):
            hf = AutoModelForCausalLM.from_config(kind, trust_remote_code=config.trust_remote_code)
    except loading_errors() as error:
        raise not_loaded(name, error) from error
    return hf.eval().requires_grad_(False)


def _tensors(folder: Path) -> list[StoredTensor]:
    return [tensor for file in weight_files(folder) for tensor in _tensors_of(folder, file)]


def _tensors_of(folder: Path, file: str) -> list[StoredTensor]:
    """Of one file: eight bytes that say how long the header is, the header in JSON, then the tensors' bytes."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / file, framework="pt"):  # looks whether header and length of the file fit each other
            pass
        with (folder / file).open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"cannot read {file} of {folder}", got=error, mend="fetch the model again") from error
    return [
        StoredTensor(file, name, DTYPES[about["dtype"]], tuple(about["shape"]), 8 + length + about["data_offsets"][0])
        for name, about in header.items()
        if name != "__metadata__" and about["dtype"] in DTYPES
    ]


def _only_stacks(converter: Any) -> bool:
    """Whether tensors are stacked along a new first axis and nothing else."""
    from transformers.core_model_loading import MergeModulelist

    operations = converter.operations
    single = len(converter.source_patterns) == len(converter.target_patterns) == len(operations) == 1
    return single and isinstance(operations[0], MergeModulelist) and operations[0].dim == 0
