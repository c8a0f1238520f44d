"""Batches hold every row once; where memory runs out they become smaller, say so, and lose nothing."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iconoclast_tl.execution.batching import Room, over_batches
from iconoclast_tl.prompts.tokens import TokenBatch

ROWS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=7), min_size=1, max_size=9)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, batch_size=st.integers(1, 5))
def test_batches_hold_every_row_once_longest_first(rows: list[list[int]], batch_size: int) -> None:
    batches: list[TokenBatch] = []
    over_batches(batches.append, rows, 0, batch_size)
    assert sorted(index for batch in batches for index in batch.rows) == list(range(len(rows)))
    lengths = [length for batch in batches for length in batch.attention_mask.sum(-1).tolist()]
    assert lengths == sorted(map(len, rows), reverse=True)
    assert max(len(batch.rows) for batch in batches) <= batch_size
    for batch in batches:
        for index, ids, mask in zip(batch.rows, batch.input_ids, batch.attention_mask, strict=True):
            assert ids[mask.bool()].tolist() == rows[index]


@settings(max_examples=60, deadline=None)
@given(n=st.integers(0, 30), rows=st.integers(1, 20), most=st.integers(1, 20))
def test_a_part_that_does_not_fit_is_halved_until_it_does(n: int, rows: int, most: int) -> None:
    room, asked = Room(rows), list[int]()

    def work(part: torch.Tensor) -> list[int]:
        asked.append(len(part))
        if len(part) > most:
            raise torch.OutOfMemoryError("too many")
        return part.tolist()

    found = room.over(torch.arange(n), work)
    assert [item for part in found for item in part] == list(range(n))
    failures = [size for size in asked if size > most]
    assert failures == sorted(set(failures), reverse=True)  # never again as many as were too many
    assert room.rows == rows or failures
    before = len(asked)
    room.over(torch.arange(n), work)
    assert all(size <= most for size in asked[before:]) or not failures


def test_it_is_said_that_memory_ran_out(caplog: pytest.LogCaptureFixture) -> None:
    def work(part: torch.Tensor) -> None:
        if len(part) > 3:
            raise torch.OutOfMemoryError("too many")

    with caplog.at_level(logging.WARNING):
        Room(3).over(torch.arange(8), work)
        assert not caplog.messages
        Room(8).over(torch.arange(8), work)
    assert caplog.messages == [
        "out of memory with 8 rows at once; going on with 4",
        "out of memory with 4 rows at once; going on with 2",
    ]


def test_on_the_cpu_too_and_for_no_other_error() -> None:
    def work(part: torch.Tensor) -> int:
        if len(part) > 3:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: ...")
        return len(part)

    assert Room(8).over(torch.arange(8), work) == [2, 2, 2, 2]

    def wrong(part: torch.Tensor) -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        Room(8).over(torch.arange(8), wrong)


def test_one_row_that_does_not_fit_is_an_error() -> None:
    def never(batch: TokenBatch) -> None:
        raise torch.OutOfMemoryError("one is too many")

    with pytest.raises(torch.OutOfMemoryError):
        over_batches(never, [[1], [2]], 0, 5)
