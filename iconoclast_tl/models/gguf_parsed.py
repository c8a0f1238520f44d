"""Have transformers work on a header that was read already.

For configuration, tokenizer and weights it would have the gguf package parse the whole file each time, 7 s for a
vocabulary of 49,000, and build the table of tensor names anew for every module of the model, 8 s for 30 layers. While
`parsed_once` is on, both are had from memory; other files are read as ever. It changes what is fast, not what is read.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iconoclast_tl.models.gguf_header import Field, GgufHeader, GgufTensor


@dataclass(frozen=True)
class _Field:
    """As gguf's reader gives one: `parts[index]` for every index in `data` are the values."""

    parts: Any
    data: range
    types: list[int]


@dataclass(frozen=True)
class _Tensor:
    name: str
    data: NDArray[Any]
    tensor_type: Any


class _Reader:
    """What transformers asks of a `gguf.GGUFReader`."""

    def __init__(self, header: GgufHeader) -> None:
        mapped = np.memmap(header.path, mode="r", dtype=np.uint8)
        self.fields = {name: _field(field) for name, field in header.fields.items()}
        self.tensors = [_tensor(one, mapped) for one in header.tensors]


@contextmanager
def parsed_once(header: GgufHeader) -> Iterator[None]:
    """For the time of the block the gguf package does not read this file again."""
    import gguf
    from transformers import modeling_gguf_pytorch_utils as loading
    from transformers.utils.logging import tqdm

    read, table, bar = gguf.GGUFReader, gguf.get_tensor_name_map, loading.tqdm
    mine = header.path.absolute()

    def reader(path: Any, *args: Any, **options: Any) -> Any:
        return _Reader(header) if Path(path).absolute() == mine else read(path, *args, **options)

    gguf.GGUFReader, gguf.get_tensor_name_map = reader, functools.cache(table)  # type: ignore[misc, assignment]
    loading.tqdm = tqdm  # the bar that can be silenced
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = read, table  # type: ignore[misc]
        loading.tqdm = bar


def _field(field: Field) -> _Field:
    if isinstance(field.value, list):  # strings
        return _Field(field.value, range(len(field.value)), [field.kind, field.item or 0])
    if isinstance(field.value, bytes):
        return _Field([field.value], range(1), [field.kind])
    if isinstance(field.value, np.ndarray):
        return _Field(field.value.reshape(-1, 1), range(len(field.value)), [field.kind, field.item or 0])
    return _Field([np.array([field.value])], range(1), [field.kind])


def _tensor(tensor: GgufTensor, mapped: NDArray[Any]) -> _Tensor:
    """Of plain floats their values, of everything else the bytes of each row's blocks."""
    from gguf import GGMLQuantizationType, quant_shape_to_byte_shape

    kind = GGMLQuantizationType(tensor.kind)
    data = mapped[tensor.offset : tensor.offset + tensor.n_bytes]
    plain = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}
    if kind in plain:
        return _Tensor(tensor.name, data.view(plain[kind]).reshape(tensor.shape), kind)
    return _Tensor(tensor.name, data.reshape(quant_shape_to_byte_shape(tensor.shape, kind)), kind)
