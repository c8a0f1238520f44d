"""The run folder: which files a run writes, its manifest, and who may write to it.

manifest.json             versions, seed, effective settings, prompt digests, timings, token passes
activations.safetensors   residuals of train and val prompts at their last tokens, means of the writers
labels.json               whether responses to train prompts show the behaviour, where a probe asked
directions.safetensors    unit directions of every residual point
selection.json            the candidates among which one was chosen, with their scores
directions.html           what there is to know of them, to look at
preview.json              the ablation preview before the search
trace.json                a search by gradient, point by point
study.journal             a search by Optuna, trial by trial
edit.safetensors/.json    the chosen edit
adapter/  merged/         the fold
attribution.json/.html    what heads and MLPs do for the behaviour
state.json                what stages leave for later ones
results.json              the published result of a complete evaluation (`stages.results`)
evaluation.html           the same to look at
responses.jsonl           what the model said, by prompt id, with the labels of every detector
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from iconoclast_tl.execution.token_passes import TokenPasses, counted
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.storage import read_json, write_json

SCHEMA = 2
"""Version of the run folder: of manifest.json and state.json."""
LOCK = ".lock"
LEFTOVER = ".*." + "[0-9a-f]" * 8
"""Names that `foundation.storage` gives to files and folders that are not complete yet."""
KEYS = {"schema", "model", "prompts", "tokens", "settings"}
"""What every manifest has."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run's files, its manifest, and its state."""

    path: Path

    @property
    def manifest(self) -> Path:
        """What the run is."""
        return self.path / "manifest.json"

    @property
    def activations(self) -> Path:
        """Residuals."""
        return self.path / "activations.safetensors"

    @property
    def directions(self) -> Path:
        """Directions."""
        return self.path / "directions.safetensors"

    @property
    def labels(self) -> Path:
        """Whether the responses to the train prompts show the behaviour."""
        return self.path / "labels.json"

    @property
    def selection(self) -> Path:
        """The candidates among which a direction was chosen."""
        return self.path / "selection.json"

    @property
    def directions_page(self) -> Path:
        """Directions to look at."""
        return self.path / "directions.html"

    @property
    def preview(self) -> Path:
        """The ablation preview."""
        return self.path / "preview.json"

    @property
    def journal(self) -> Path:
        """The study."""
        return self.path / "study.journal"

    @property
    def trace(self) -> Path:
        """The points of a search by gradient."""
        return self.path / "trace.json"

    @property
    def is_searched(self) -> bool:
        """Whether a search was begun here."""
        # A user's own search method need not keep its trials or points.
        return self.journal.is_file() or self.trace.is_file() or "search" in self.read_state()

    @property
    def edit(self) -> Path:
        """The chosen edit."""
        return self.path / "edit.safetensors"

    @property
    def adapter(self) -> Path:
        """The PEFT adapter."""
        return self.path / "adapter"

    @property
    def merged(self) -> Path:
        """Plain weights."""
        return self.path / "merged"

    @property
    def attribution(self) -> Path:
        """An attribution study."""
        return self.path / "attribution.json"

    @property
    def attribution_page(self) -> Path:
        """The same to look at."""
        return self.path / "attribution.html"

    @property
    def state(self) -> Path:
        """What stages leave for later ones."""
        return self.path / "state.json"

    @property
    def results(self) -> Path:
        """The published result of a complete evaluation."""
        return self.path / "results.json"

    @property
    def evaluation_page(self) -> Path:
        """An evaluation to look at."""
        return self.path / "evaluation.html"

    @property
    def responses(self) -> Path:
        """What the model said."""
        return self.path / "responses.jsonl"

    def read_manifest(self) -> dict[str, Any] | None:
        """The manifest; None where no run was here. `UserError` for a folder that is something else."""
        if self.manifest.is_file():
            manifest = read_json(self.manifest)
            if isinstance(manifest, dict) and manifest.get("schema") == SCHEMA and manifest.keys() >= KEYS:
                return manifest
            raise self._of_another_version(manifest)
        if self.path.is_dir() and any(item.name != LOCK for item in self.path.iterdir()):
            raise UserError(
                f"the output folder {self.path} holds something else",
                want="an empty or new folder, or a run's",
            )
        return None

    def _of_another_version(self, manifest: Any) -> UserError:
        found = manifest.get("schema") if isinstance(manifest, dict) else None
        if found in (None, SCHEMA):
            return UserError(f"{self.manifest} is not the manifest of a run", mend="pass another --out")
        return UserError(
            f"{self.path} holds a run of another version of iconoclast-tl",
            got=f"schema {found}",
            want=f"schema {SCHEMA}",
            mend="pass another --out, or continue it with the version that made it",
        )

    def remember(self, **parts: Any) -> None:
        """Put `parts` into the manifest, atomically."""
        write_json(self.manifest, {**(self.read_manifest() or {}), **parts})

    @contextmanager
    def measured(self, stage: str, hf: nn.Module) -> Iterator[None]:
        """Add the time that a stage takes, and the token passes through the model, to the manifest.

        An interrupted stage adds what it took until then, and the rest when it is continued. One that was killed, or
        that failed, adds nothing.
        """
        start = time.perf_counter()
        with counted(hf) as passes:
            try:
                yield
            except KeyboardInterrupt:
                self._add(stage, time.perf_counter() - start, passes)
                raise
        self._add(stage, time.perf_counter() - start, passes)

    def _add(self, stage: str, seconds: float, passes: TokenPasses) -> None:
        manifest = self.read_manifest() or {}
        timing, counts = manifest.get("timing", {}), manifest.get("token_passes", {})
        before = counts.get(stage, {})
        self.remember(
            timing={**timing, stage: round(timing.get(stage, 0) + seconds, 3)},
            token_passes={
                **counts,
                stage: {way: before.get(way, 0) + n for way, n in passes.to_json().items()},
            },
        )

    def read_state(self) -> dict[str, Any]:
        """What stages left so far; empty where none has left anything."""
        return dict(read_json(self.state)) if self.state.is_file() else {}

    def record(self, **parts: Any) -> dict[str, Any]:
        """Put `parts` into the state, atomically, and return it whole."""
        state = {**self.read_state(), **parts}
        write_json(self.state, state)
        return state

    def require_writable(self) -> None:
        """Raise `UserError` where the folder cannot be created or written, before anything takes time.

        Tries it, in the nearest folder that exists: permissions do not tell (root in /proc, a read-only mount).
        """
        import tempfile

        existing = next(place for place in (self.path, *self.path.resolve().parents) if place.exists())
        try:
            with tempfile.TemporaryDirectory(prefix=".", dir=existing):
                pass
        except OSError as error:
            raise UserError(
                f"cannot write to {self.path}",
                got=f"{existing} is {'not writable' if existing.is_dir() else 'a file'}",
                want="a folder that can be made or written",
                mend="pass another --out",
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Create the folder and lock it against other processes; the lock ends with the process, however that ends.

        A user's mistake that is found before anything was computed leaves no new folder behind.
        """
        from filelock import FileLock, Timeout

        made = [place for place in (self.path, *self.path.parents) if not place.exists()]
        fresh = not self.manifest.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(str(self.path / LOCK))
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(
                f"another process is writing to {self.path}", mend="wait for it or pass another --out"
            ) from error
        except OSError as error:
            raise UserError(f"cannot write to {self.path}", got=error, mend="pass another --out") from error
        for leftover in self.path.glob(LEFTOVER):  # of a process that was killed while it wrote
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
        try:
            yield
        except UserError:
            if fresh:
                self._unmake(made)
            raise
        finally:
            lock.release()

    def _unmake(self, made: list[Path]) -> None:
        """Remove the manifest and the lock where the folder holds nothing else, and the folders that were made."""
        if {item.name for item in self.path.iterdir()} <= {self.manifest.name, LOCK}:
            self.manifest.unlink(missing_ok=True)
            (self.path / LOCK).unlink(missing_ok=True)
            for place in made:
                place.rmdir()
