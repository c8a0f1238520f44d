"""A safetensors file that is written piece by piece, so that it may be larger than memory.

The format is eight bytes that say how long the header is, the header (JSON, which may end in spaces), and the bytes of
the tensors one after the other. The shapes of what comes in pieces are known in advance, so that every piece has its
place from the start; room is left for a header that is written when all is there.

Pieces are written and not mapped: a page of a shared mapping that the disk has no room for ends the process by a
signal, where a write that fails is an error; and what was written does not count as the process's own memory. To read,
`storage.read_tensors` maps the file: nothing is in memory before it is looked at.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from jaxtyping import Float
from torch import Tensor

from iconoclast_tl.foundation.storage import replacing_file

DTYPES: Final[Mapping[str, torch.dtype]] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""What safetensors calls the floating-point dtypes."""
PAGE: Final = 4096
"""Bytes: the tensors begin at a multiple of it, and the header has as many for what is added at the end."""
FILLER: Final = "filler"
"""A few bytes between tensors, which the format wants without gaps, where the next would not lie at its alignment."""


class TensorStream:
    """Float32 tensors that arrive in pieces, then small ones that are added whole."""

    def __init__(self, file: BinaryIO, shapes: Mapping[str, tuple[int, ...]], about: str) -> None:
        """Have the disk set room aside for tensors of these shapes; `about` goes into the header."""
        self._file = file
        self._header: dict[str, Any] = {"__metadata__": {"about": about}}
        self._end = 0
        for name, shape in shapes.items():
            self._announce(name, "F32", shape)
        self._start = (8 + len(self._encoded()) + 2 * PAGE - 1) // PAGE * PAGE
        _claim(file, self._start + self._end)

    def put(self, name: str, rows: Sequence[int], values: Float[Tensor, "*outer batch width"]) -> None:
        """Write `rows` of the last but one axis of an announced tensor, whichever they are; again, over the former."""
        about = self._header[name]
        *outer, n, width = about["shape"]
        if values.shape != (*outer, len(rows), width) or not all(0 <= row < n for row in rows):
            raise ValueError(f"{name} of {about['shape']} has no place for {tuple(values.shape)} at rows {rows}")
        blocks = values.detach().cpu().float().contiguous().reshape(-1, len(rows), width).numpy()
        start, length = self._start + about["data_offsets"][0], width * blocks.itemsize
        for number, block in enumerate(blocks):
            for row, vector in zip(rows, block, strict=True):
                self._file.seek(start + (number * n + row) * length)
                self._file.write(vector.data)

    def add(self, name: str, tensor: Float[Tensor, "..."]) -> None:
        """Write a tensor that was not announced, in its own dtype, behind all others."""
        if gap := -self._end % tensor.dtype.itemsize:
            self._append(f"{FILLER}.{self._end}", "U8", (gap,), memoryview(bytes(gap)))
        kind = next(kind for kind, dtype in DTYPES.items() if dtype == tensor.dtype)
        self._append(name, kind, tuple(tensor.shape), raw_bytes(tensor))

    def finish(self) -> None:
        """Write the header, without which the file cannot be read."""
        header, room = self._encoded(), self._start - 8
        if len(header) > room:
            raise ValueError(f"the header takes {len(header)} bytes and has room for {room}")
        self._file.seek(0)
        self._file.write(room.to_bytes(8, "little") + header.ljust(room))

    def _announce(self, name: str, kind: str, shape: tuple[int, ...]) -> int:
        """Give a tensor its place; returns its first byte."""
        size = 1 if kind == "U8" else DTYPES[kind].itemsize
        for n in shape:
            size *= n
        begin, self._end = self._end, self._end + size
        self._header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, self._end]}
        return begin

    def _append(self, name: str, kind: str, shape: tuple[int, ...], data: memoryview) -> None:
        self._file.seek(self._start + self._announce(name, kind, shape))
        self._file.write(data)

    def _encoded(self) -> bytes:
        return json.dumps(self._header, ensure_ascii=False).encode("utf-8")


@contextmanager
def streamed_tensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, Any]
) -> Iterator[TensorStream]:
    """Write `path` atomically while it is worked on: at the end it holds what was put, or what it held before.

    What was announced and never put is zero. `metadata` is as in `write_tensors`, and `read_tensors` reads the file.
    Raises `UserError` where there is no room: mostly at once, since room for the announced tensors is claimed first.
    """
    about = json.dumps(dict(metadata), ensure_ascii=False)
    with replacing_file(path) as temporary, temporary.open("w+b") as file:
        stream = TensorStream(file, shapes, about)
        yield stream
        stream.finish()


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor as a safetensors file holds them."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _claim(file: BinaryIO, size: int) -> None:
    """Make a file `size` bytes long, all zero, and have the disk set the room aside where it can."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system that cannot; it fails later if full
                raise
    file.truncate(size)
