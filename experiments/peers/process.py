"""One command as a whole process: wall time, processor time, peak memory, log."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

POLL_SECONDS = 0.05
"""How often a running command is looked at; wall time is never too long by more than this."""
SAMPLE_SECONDS = 1.0
"""How often the processor time of a running command is written down."""

Sample = tuple[float, float]
"""Seconds since the epoch, and the processor seconds that a process had used by then."""


@dataclass(frozen=True)
class Finished:
    """What a command cost."""

    wall_seconds: float
    """From the start of the process to its end, imports included."""
    peak_bytes: int
    """Largest resident memory of the process or of any child it waited for."""
    processor_seconds: float = 0.0
    """User and system time of the process and of the children it waited for: what a busy machine does not change."""
    samples: tuple[Sample, ...] = ()
    """Processor time while it ran, in order."""

    def processor_between(self, start: float, end: float) -> float:
        """Processor seconds between two moments in seconds since the epoch, interpolated between samples."""
        return _used_by(self.samples, end) - _used_by(self.samples, start)


class CommandError(Exception):
    """A command that did not end with status 0."""


def run_timed(
    command: Sequence[object],
    log: Path,
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    answers: str = "",
    tick: Callable[[], None] = lambda: None,
) -> Finished:
    """Run `command` in `folder` with `environment` added to ours and `answers` as its input.

    Every part of `command` is taken as text. Output goes to `log`; `tick` is called while it runs. Raises
    `CommandError` with the last line of the log where the status is not 0.
    """
    with tempfile.TemporaryFile() as given, log.open("wb") as output:
        given.write(answers.encode())
        given.seek(0)
        start, samples = time.perf_counter(), [(time.time(), 0.0)]
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdin=given,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            while True:
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                if pid:
                    break
                tick()
                if time.time() - samples[-1][0] >= SAMPLE_SECONDS:
                    samples.append((time.time(), _processor_seconds(process.pid)))
                time.sleep(POLL_SECONDS)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise CommandError(f"{command[0]} ended with status {process.returncode}: {last_line(log)}; see {log}")
    processor = usage.ru_utime + usage.ru_stime
    samples.append((time.time(), processor))
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Finished(wall, peak, processor, tuple(samples))


def _processor_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def _used_by(samples: Sequence[Sample], moment: float) -> float:
    for (before, less), (after, more) in itertools.pairwise(samples):
        if before <= moment <= after:
            return less + (more - less) * (moment - before) / (after - before)
    return samples[0][1] if moment < samples[0][0] else samples[-1][1]


def last_line(log: Path) -> str:
    """The last line of a log that is not empty."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def thread_environment(threads: int) -> dict[str, str]:
    """Thread counts of the numerical libraries, the same for every contestant, and no network for model hubs."""
    counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
    return {name: str(threads) for name in counts} | dict.fromkeys(offline, "1") | {"TOKENIZERS_PARALLELISM": "false"}
