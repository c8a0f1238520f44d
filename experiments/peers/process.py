"""One command as a whole process: wall time, peak memory, log."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.05
"""How often a running command is looked at; wall time is never too long by more than this."""


@dataclass(frozen=True)
class Finished:
    """What a command cost."""

    wall_seconds: float
    """From the start of the process to its end, imports included."""
    peak_bytes: int
    """Largest resident memory of the process or of any child it waited for."""


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
        start = time.perf_counter()
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
                time.sleep(POLL_SECONDS)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise CommandError(f"{command[0]} ended with status {process.returncode}: {last_line(log)}; see {log}")
    return Finished(wall, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def last_line(log: Path) -> str:
    """The last line of a log that is not empty."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def thread_environment(threads: int) -> dict[str, str]:
    """Thread counts of the numerical libraries, the same for every contestant, and no network for model hubs."""
    counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
    return {name: str(threads) for name in counts} | dict.fromkeys(offline, "1") | {"TOKENIZERS_PARALLELISM": "false"}
