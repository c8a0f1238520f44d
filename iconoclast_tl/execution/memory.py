"""How much memory there is, and how much a piece of work takes at most, on every device that a model lies on."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

SAMPLED_EVERY = 0.002
"""Seconds between two looks at the process's size, where there is no counter of the largest."""
GROUPS, OWN_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
"""Where Linux says what a container may use and uses, and in which groups this process is."""


class Meter:
    """Of some devices together: bytes in use at most during a piece of work, and bytes that are free.

    On GPUs torch counts; on the CPU the process's resident size is sampled while the work runs, against what it was
    when the meter was made.
    """

    def __init__(self, devices: Iterable[torch.device]) -> None:
        self._gpus = sorted({device for device in devices if device.type == "cuda"}, key=str)
        self._on_cpu = not self._gpus
        self._before = self._held()
        self.free = self._free()
        """When the meter was made; on the GPU that has least."""

    @staticmethod
    def can_measure(devices: Iterable[torch.device]) -> bool:
        """Whether all devices are of a kind that is measured."""
        return {device.type for device in devices} <= {"cpu", "cuda"}

    def peak(self, work: Callable[[], Any]) -> int:
        """Bytes more than when the meter was made that `work` has in use at most; on the GPU where that is most."""
        if self._on_cpu:
            return max(_sampled(work), self._before) - self._before
        for gpu in self._gpus:
            torch.cuda.reset_peak_memory_stats(gpu)
        work()
        used = [torch.cuda.max_memory_allocated(gpu) for gpu in self._gpus]
        return max(now - before for now, before in zip(used, self._allocated(), strict=True))

    def _held(self) -> int:
        return _resident() if self._on_cpu else 0

    def _allocated(self) -> list[int]:
        return [torch.cuda.memory_allocated(gpu) for gpu in self._gpus]

    def _free(self) -> int:
        if self._on_cpu:
            return _free_here()
        return min(free_bytes(str(gpu)) for gpu in self._gpus)


def free_bytes(device: str) -> int:
    """What a new tensor on this device may take: of a GPU, or of this machine."""
    if device.startswith("cuda"):
        gpu = torch.device(device)
        # What torch keeps for itself without using it is free for the next tensor.
        kept = torch.cuda.memory_reserved(gpu) - torch.cuda.memory_allocated(gpu)
        return int(torch.cuda.mem_get_info(gpu)[0]) + kept
    return _free_here()


def release(model: nn.Module) -> None:
    """Take a model's weights and buffers out of memory, whoever else holds the model; it is of no use afterwards."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _sampled(work: Callable[[], Any]) -> int:
    done, largest = threading.Event(), [_resident()]

    def look() -> None:
        while not done.wait(SAMPLED_EVERY):
            largest[0] = max(largest[0], _resident())

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        work()
        largest[0] = max(largest[0], _resident())
    finally:
        done.set()
        watcher.join()
    return largest[0]


def _resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def _free_here() -> int:
    """Of the machine, or of the container or batch job where that may use less."""
    import psutil

    return min([int(psutil.virtual_memory().available), *_left_in_groups()])


def _left_in_groups() -> Iterator[int]:
    """What every control group of this process leaves; files that were only read count as free."""
    try:
        lines = OWN_GROUP.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        names = ("memory.max", "memory.current", "inactive_file ")
        if controllers:  # the first version
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")
        root = GROUPS / controllers
        place = root / path.lstrip("/")
        for folder in (place, *place.parents):
            if folder.is_relative_to(root):
                yield from _left_in(folder, *names)


def _left_in(folder: Path, limit: str, used: str, cached: str) -> Iterator[int]:
    try:
        most, now = int((folder / limit).read_text()), int((folder / used).read_text())
        stat = (folder / "memory.stat").read_text().splitlines()
        kept = sum(int(line.split()[1]) for line in stat if line.startswith(cached))
    except (OSError, ValueError):  # no such group here, or one without a limit ("max")
        return
    yield most - now + kept
