"""What a GGUF file says of itself, read without trust: every count, size and place is held against the file's length.

    "GGUF", version, number of tensors, number of keys
    keys     name, type, value
    tensors  name, shape (fastest axis first), type, place
    zeros up to a multiple of general.alignment, then the tensors' bytes

Nothing is allocated for what the file does not hold. Strings stay bytes and arrays of numbers stay in the mapped file,
since a vocabulary has hundreds of thousands of entries. Format: ggml, `docs/gguf.md`.
"""

from __future__ import annotations

import hashlib
import mmap
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np

from iconoclast_tl.foundation.errors import UserError

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
NUMBERS: Final = {
    0: "u1",
    1: "i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
"""Types of values that have a fixed size, as numpy calls them."""
STRING, ARRAY = 8, 9
MOST_KEYS, MOST_TENSORS, MOST_STRINGS, MOST_AXES = 2**16, 2**20, 2**22, 4
"""Far more than any model has. A damaged count must end in an error, not in an hour of reading."""
SAMPLED: Final = 64
"""Places of a file of which some bytes are looked at to know it again."""
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)


@dataclass(frozen=True)
class Field:
    """The value of one key."""

    kind: int
    """Its type, as the file numbers types."""
    item: int | None
    """The type of an array's entries."""
    value: Any
    """A number, bytes, a list of bytes or a numpy array."""


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the file, which lies within it."""

    name: str
    shape: tuple[int, ...]
    """Slowest axis first, as torch has it."""
    kind: int
    """How it is stored, as ggml numbers types."""
    offset: int
    """Of its first byte in the file."""
    n_bytes: int

    @property
    def n_elements(self) -> int:
        """Number of weights."""
        return prod(self.shape)


@dataclass(frozen=True, eq=False)
class GgufHeader:
    """A file's keys and tensors; what they say of places and sizes holds, everything else is still to be checked."""

    path: Path
    fields: Mapping[str, Field]
    tensors: tuple[GgufTensor, ...]

    @property
    def architecture(self) -> str:
        """What llama.cpp calls the model's architecture."""
        return self.text("general.architecture") or ""

    def text(self, key: str) -> str | None:
        """A string; None where there is none of this name."""
        value = getattr(self.fields.get(key), "value", None)
        return value.decode("utf-8") if isinstance(value, bytes) else None

    def numbers(self, key: str) -> list[int | float]:
        """A number, or those of an array; empty where there are none of this name."""
        value = getattr(self.fields.get(key), "value", None)
        if isinstance(value, np.ndarray):
            return list(value.tolist())
        return [value] if isinstance(value, int | float) else []

    def number(self, key: str) -> int | float | None:
        """One number; None where there is none of this name."""
        found = self.numbers(key)
        return found[0] if len(found) == 1 else None

    def n_strings(self, key: str) -> int:
        """How many strings an array holds; 0 where there is none of this name."""
        value = getattr(self.fields.get(key), "value", None)
        return len(value) if isinstance(value, list) else 0

    def digest(self) -> str:
        """SHA-256 over the length, the header and some bytes of 64 places: knows the file again, in a moment."""
        size = self.path.stat().st_size
        state = hashlib.sha256(str(size).encode())
        with self.path.open("rb") as file:
            state.update(file.read(min(one.offset for one in self.tensors)))
            for place in range(SAMPLED):
                file.seek(place * size // SAMPLED)
                state.update(file.read(64))
        return state.hexdigest()


def read_header(path: Path) -> GgufHeader:
    """Keys and tensors of a file.

    Raises `UserError` for what is no GGUF file, is one of several parts, is cut off, or contradicts itself.
    """
    try:
        with path.open("rb") as file:
            start = file.read(4)
            if start != MAGIC:
                raise UserError(f"{path} is not a GGUF file", got=f"it begins with {start!r}", want=f"{MAGIC!r}")
            mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise UserError(f"cannot read {path}", got=error) from error
    _require_whole(path)
    cursor = _Cursor(path, mapped)
    version, n_tensors, n_keys = cursor.unpack("<IQQ")
    if version not in VERSIONS:
        raise UserError(f"{path} is of a GGUF version that is not read", got=version, want=f"one of {VERSIONS}")
    cursor.require_count(n_keys, 13, MOST_KEYS, "keys")
    fields = cursor.unique((cursor.string().decode("utf-8"), cursor.field()) for _ in range(n_keys))
    cursor.require_count(n_tensors, 24, MOST_TENSORS, "tensors")
    entries = cursor.unique((cursor.string().decode("utf-8"), cursor.tensor()) for _ in range(n_tensors))
    header = GgufHeader(path, fields, ())
    _require_one_part(header)
    return GgufHeader(path, fields, _placed(header, entries, cursor.place, len(mapped)))


class _Cursor:
    """Reads a mapped file from its beginning, and never past its end."""

    def __init__(self, path: Path, mapped: memoryview) -> None:
        self.path, self.mapped, self.place, self.n_strings = path, mapped, len(MAGIC), 0

    def take(self, size: int) -> memoryview:
        if size > len(self.mapped) - self.place:
            raise _cut_off(self.path, len(self.mapped), self.place + size)
        self.place += size
        return self.mapped[self.place - size : self.place]

    def unpack(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def string(self) -> bytes:
        self.n_strings += 1
        if self.n_strings > MOST_STRINGS:
            raise _damaged(self.path, "more strings than any vocabulary has")
        found = bytes(self.take(*self.unpack("<Q")))
        try:
            found.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _damaged(self.path, "a name or a word that is no text") from error
        return found

    def field(self) -> Field:
        (kind,) = self.unpack("<I")
        if kind == STRING:
            return Field(kind, None, self.string())
        if kind == ARRAY:
            item, count = self.unpack("<IQ")
            return Field(kind, item, self.array(item, count))
        return Field(kind, None, self.array(kind, 1)[0].item())

    def array(self, kind: int, count: int) -> Any:
        if kind == STRING:
            self.require_count(count, 8, MOST_STRINGS, "strings")
            return [self.string() for _ in range(count)]
        if kind not in NUMBERS:
            raise _damaged(self.path, f"a value of type {kind}")
        form = np.dtype(NUMBERS[kind])
        return np.frombuffer(self.take(count * form.itemsize), form)

    def tensor(self) -> tuple[tuple[int, ...], int, int]:
        (n_axes,) = self.unpack("<I")
        if n_axes > MOST_AXES:
            raise _damaged(self.path, f"a tensor of {n_axes} axes")
        shape = self.unpack(f"<{n_axes}Q")
        kind, offset = self.unpack("<IQ")
        return shape[::-1], kind, offset

    def require_count(self, count: int, size: int, most: int, what: str) -> None:
        """That many of at least this size must fit into what is left of the file."""
        if count > most or count * size > len(self.mapped) - self.place:
            raise _damaged(self.path, f"{count} {what} in {len(self.mapped):,} bytes")

    def unique(self, pairs: Iterator[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise _damaged(self.path, f"{quoted(name)} twice")
            found[name] = value
        return found


def quoted(text: str) -> str:
    """A name out of a file, short enough for an error's line."""
    return repr(text if len(text) <= 60 else f"{text[:60]}…")


def _placed(header: GgufHeader, entries: Mapping[str, Any], end: int, size: int) -> tuple[GgufTensor, ...]:
    """The tensors with their places; each must lie in the file by itself."""
    path, alignment = header.path, header.number("general.alignment") or 32
    if not isinstance(alignment, int) or not 1 <= alignment <= 2**20:
        raise _damaged(path, f"an alignment of {alignment}")
    if not entries:
        raise UserError(f"{path} holds no weights", got="no tensors", want="a GGUF file of a whole model")
    start = -(-end // alignment) * alignment
    tensors = [
        GgufTensor(name, shape, kind, start + offset, _n_bytes(path, name, shape, kind))
        for name, (shape, kind, offset) in entries.items()
    ]
    if (last := max(one.offset + one.n_bytes for one in tensors)) > size:
        raise _cut_off(path, size, last)
    free = start
    for one in sorted(tensors, key=lambda one: one.offset):
        if one.offset < free:
            raise _damaged(path, f"{quoted(one.name)} in the place of another tensor")
        free = one.offset + one.n_bytes
    return tuple(tensors)


def _n_bytes(path: Path, name: str, shape: tuple[int, ...], kind: int) -> int:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if kind not in set(GGMLQuantizationType):
        raise UserError(f"{path} is quantised in a way that gguf does not know", got=f"type {kind} of {quoted(name)}")
    block, n_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    if not shape or 0 in shape or shape[-1] % block:
        raise _damaged(path, f"{quoted(name)} of shape {shape} in blocks of {block}")
    return prod(shape) // block * n_bytes


def _require_whole(path: Path) -> None:
    if part := _PART.search(path.name):
        raise _one_of_several(path, int(part[2]))


def _require_one_part(header: GgufHeader) -> None:
    if (parts := header.number("split.count") or 1) > 1:
        raise _one_of_several(header.path, parts)


def _one_of_several(path: Path, parts: float) -> UserError:
    return UserError(
        f"{path} is one of {parts} parts of a model",
        want="a GGUF file that holds the whole model",
        mend="join them with llama.cpp's `llama-gguf-split --merge FIRST_PART WHOLE.gguf`",
    )


def _cut_off(path: Path, size: int, needed: int) -> UserError:
    return UserError(
        f"{path} is cut off", got=f"{size:,} bytes", want=f"{needed:,}, by its own header", mend="fetch it again"
    )


def _damaged(path: Path, got: str) -> UserError:
    return UserError(f"{path} is damaged", got=got, mend="fetch it again")
