"""What every contestant is given, and what it hands back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.peers.process import Finished

Tick = Callable[[], None]
"""Called while a contestant works."""


@dataclass(frozen=True)
class Job:
    """One run: the same for all contestants but for the number of trials."""

    model: Path
    prompts: Path
    """Folder of the .txt files `{target,neutral}_{train,val,test}` and `borderline`."""
    system: str
    """The system message of every prompt."""
    budget: int
    """Tokens of a response."""
    trials: int
    seed: int
    threads: Mapping[str, str]
    """Environment that fixes the number of threads and keeps off the network."""
    dtype: str = "float32"
    markers: tuple[str, ...] = ()
    """Refusal phrases of the model that a peer's own list does not know."""
    judge: str = "judge"
    """The module here that judges the exports."""
    judged_tokens: int = 32
    """Tokens of a response before the judge."""

    def source(self, stem: str) -> Path:
        """The file of one set of prompts, as an absolute path."""
        return (self.prompts / f"{stem}.txt").absolute()


@dataclass(frozen=True)
class Outcome:
    """One finished run, by its contestant's own account."""

    job: Finished
    """The whole job as one process, from start to the export of the chosen point."""
    search_seconds: float
    front: Mapping[str, Mapping[str, Any]]
    """Points of the front by name, with what the contestant measured of them on val; at least `rate`."""
    chosen: str
    """The name of the point that the contestant chose or shows first."""
    report_seconds: float = 0.0
    """Of the whole job, what came after the export: a report on the test split."""
    search_processor_seconds: float | None = None
    """Of the job's processor time, the search's; None where it cannot be read."""

    def to_json(self) -> dict[str, Any]:
        """As job.json keeps it."""
        return {
            "wall_seconds": self.job.wall_seconds,
            "processor_seconds": self.job.processor_seconds,
            "search_seconds": self.search_seconds,
            "search_processor_seconds": self.search_processor_seconds,
            "peak_bytes": self.job.peak_bytes,
            "front": {name: dict(point) for name, point in self.front.items()},
            "chosen": self.chosen,
            "report_seconds": self.report_seconds,
        }


class Contestant:
    """A tool of the benchmark: runs a job in a new folder, and afterwards exports its front from there."""

    def identity(self) -> str:
        """What program it is; a run of another one is not taken for its own."""
        raise NotImplementedError

    def run(self, job: Job, folder: Path, tick: Tick) -> Outcome:
        """The whole job as a user does it."""
        raise NotImplementedError

    def export_front(self, job: Job, folder: Path, tick: Tick) -> dict[str, Path]:
        """Every point of the front as a model folder, by name; no time is taken of it."""
        raise NotImplementedError
