"""What is free and what is taken out of memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from iconoclast_tl.execution import memory


def test_what_torch_keeps_unused_on_a_gpu_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 5000 bytes the driver says 1000 are free; torch holds 100, of which 40 are in no tensor."""
    seen: list[str] = []

    def told(number: int | tuple[int, int]) -> object:
        return lambda gpu: seen.append(str(gpu)) or number

    monkeypatch.setattr(torch.cuda, "mem_get_info", told((1000, 5000)))
    monkeypatch.setattr(torch.cuda, "memory_reserved", told(100))
    monkeypatch.setattr(torch.cuda, "memory_allocated", told(60))
    assert memory.free_bytes("cuda:1") == 1040
    assert set(seen) == {"cuda:1"}
    monkeypatch.setattr(memory, "_free_here", lambda: 7)
    assert memory.free_bytes("cpu") == 7


def test_whoever_holds_a_released_model_holds_no_weights() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    held = [*model.parameters(), *model.buffers()]
    memory.release(model)
    assert [tensor.numel() for tensor in held] == [0] * len(held)
    assert model[0].weight.dtype == torch.float32
