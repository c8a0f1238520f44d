"""A file that is written piece by piece holds what was put, is one of safetensors', and is whole or not there."""

from __future__ import annotations

import resource
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from iconoclast_tl.foundation import tensor_file
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.storage import read_tensors, write_tensors
from iconoclast_tl.foundation.tensor_file import TensorStream, streamed_tensors


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tensors")


@given(
    shapes=st.lists(st.lists(st.integers(1, 5), min_size=2, max_size=4), min_size=1, max_size=3),
    batch=st.integers(1, 5),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_pieces_in_any_order_make_the_tensors(place: Path, shapes: list[list[int]], batch: int, seed: int) -> None:
    """Of any sizes, so that what is added behind must be aligned by itself."""
    generator = torch.Generator().manual_seed(seed)
    whole = {f"t{i}": torch.randn(*shape, generator=generator) for i, shape in enumerate(shapes)}
    added = {"half": whole["t0"].bfloat16(), "double": whole["t0"].double(), "one": torch.tensor(3.0).double()}
    path = place / "pieces.safetensors"
    with streamed_tensors(path, {name: tuple(one.shape) for name, one in whole.items()}, {"key": "λ"}) as stream:
        for name, tensor in whole.items():
            order = torch.randperm(tensor.shape[-2], generator=generator)
            for rows in order.split(batch):
                stream.put(name, rows.tolist(), torch.zeros_like(tensor[..., rows, :]))  # as where memory ran out
                stream.put(name, rows.tolist(), tensor[..., rows, :])
        for name, tensor in added.items():
            stream.add(name, tensor)
    for found in (load_file(path), read_tensors(path)[0]):
        for name, tensor in (whole | added).items():
            assert torch.equal(found[name], tensor)
            assert found[name].dtype == tensor.dtype
            assert found[name].data_ptr() % tensor.dtype.itemsize == 0
        assert found.keys() - whole.keys() - added.keys() <= {name for name in found if name.startswith("filler")}
    assert read_tensors(path)[1] == {"key": "λ"}
    assert [item.name for item in place.iterdir()] == ["pieces.safetensors"]


@pytest.mark.parametrize("error", [OSError("no space"), RuntimeError("a defect"), KeyboardInterrupt()])
@pytest.mark.parametrize("old", [False, True])
def test_a_writer_that_is_stopped_leaves_what_was_there(tmp_path: Path, error: BaseException, old: bool) -> None:
    path = tmp_path / "t.safetensors"
    if old:
        write_tensors(path, {"old": torch.ones(3)}, {})
    with pytest.raises(UserError if isinstance(error, OSError) else type(error)):
        _put_half(path, error)
    assert [item.name for item in tmp_path.iterdir()] == (["t.safetensors"] if old else [])
    assert not old or read_tensors(path)[0].keys() == {"old"}
    with streamed_tensors(path, {"new": (4, 2)}, {}) as stream:  # and the next is not in its way
        stream.put("new", range(4), torch.ones(4, 2))
    assert read_tensors(path)[0].keys() == {"new"}


def _put_half(path: Path, error: BaseException) -> None:
    with streamed_tensors(path, {"new": (4, 2)}, {}) as stream:
        stream.put("new", [0, 1], torch.ones(2, 2))
        raise error


@contextmanager
def full_disk(left: int) -> Iterator[None]:
    """No file may grow beyond `left` bytes: a write fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (left, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("claims", [True, False])
def test_a_full_disk_is_told_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, claims: bool
) -> None:
    """Also where the operating system cannot set room aside, since the file gets its length first."""
    if not claims:
        monkeypatch.delattr(tensor_file.os, "posix_fallocate", raising=False)
    path, begun = tmp_path / "t.safetensors", list[int]()
    write_tensors(path, {"old": torch.ones(3)}, {})

    def write(left: int) -> None:
        with full_disk(left), streamed_tensors(path, {"new": (10, 2000)}, {}):
            begun.append(left)

    with pytest.raises(UserError, match="cannot write"):
        write(20_000)
    assert read_tensors(path)[0].keys() == {"old"}
    assert list(tmp_path.iterdir()) == [path]
    write(200_000)
    assert begun == [200_000]
    assert read_tensors(path)[0].keys() == {"new"}


def test_room_that_goes_while_it_is_written_is_told_too(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"

    def write(left: int) -> None:
        with streamed_tensors(path, {"new": (10, 2)}, {}) as stream, full_disk(left):
            stream.add("behind", torch.ones(5000))

    with pytest.raises(UserError, match="cannot write"):
        write(10_000)
    assert not list(tmp_path.iterdir())
    write(40_000)
    assert read_tensors(path)[0]["behind"].sum() == 5000


@pytest.mark.parametrize(
    ("rows", "shape"),
    [([4], (2, 1, 3)), ([-1], (2, 1, 3)), ([0, 1], (2, 1, 3)), ([0], (2, 1, 4)), ([0], (3, 1, 3)), ([0], (1, 3))],
)
def test_a_piece_that_has_no_place_is_a_defect(tmp_path: Path, rows: list[int], shape: tuple[int, ...]) -> None:
    def put(rows: list[int], shape: tuple[int, ...]) -> None:
        with streamed_tensors(tmp_path / "t", {"new": (2, 4, 3)}, {}) as stream:
            stream.put("new", rows, torch.ones(shape))

    with pytest.raises(ValueError, match="no place"):
        put(rows, shape)
    put([3], (2, 1, 3))


def test_a_header_that_outgrew_its_room_is_a_defect(tmp_path: Path) -> None:
    def add(n: int) -> None:
        with streamed_tensors(tmp_path / "t", {"new": (2, 4)}, {}) as stream:
            for i in range(n):
                stream.add(f"tensor.{i}", torch.ones(1))

    add(20)
    with pytest.raises(ValueError, match="the header takes"):
        add(200)


def mapped_to(tensor: torch.Tensor) -> str:
    """The file in whose mapping a tensor lies; empty where it is in the process's own memory."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(part, 16) for part in line.split()[0].split("-"))
        if begin <= tensor.data_ptr() < end:
            return next(iter(line.split()[5:]), "")
    return ""


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux where memory lies")
def test_tensors_are_read_where_they_lie_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    with streamed_tensors(path, {"large": (3, 4, 500)}, {}) as stream:
        stream.put("large", range(4), torch.ones(3, 4, 500))
        stream.add("small", torch.ones(2))
    found = read_tensors(path)[0]
    assert {mapped_to(tensor) for tensor in found.values()} == {str(path)}
    assert mapped_to(found["large"][1].transpose(0, 1)) == str(path)
    assert mapped_to(found["large"].clone()) != str(path)


def test_what_is_put_is_not_held(tmp_path: Path) -> None:
    """No view of a piece is left once it is put: its memory can go."""

    def put(stream: TensorStream) -> weakref.ref[np.ndarray[Any, Any]]:
        memory = np.ones((2, 4, 3), dtype=np.float32)
        stream.put("new", range(4), torch.from_numpy(memory))
        return weakref.ref(memory)

    with streamed_tensors(tmp_path / "t", {"new": (2, 4, 3)}, {}) as stream:
        assert put(stream)() is None
