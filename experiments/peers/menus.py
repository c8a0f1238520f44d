"""Heretic and two tools made from it: run unmodified by their own commands, their menus answered through a pipe.

All three keep an Optuna journal in `checkpoints/` of the working folder, read a TOML file there, and show the same
menus: the list of trials, and for a trial what to do with it. `KAGGLE_KERNEL_RUN_TYPE` makes the menus read numbers
from standard input. They take no other notice of that variable.

The list of trials is each tool's own choice of its trials and their order, so it is read from what the tool printed.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.peers.job import Contestant, Job, Outcome, Tick
from experiments.peers.journal import PeerTrial, read_journal
from experiments.peers.process import Finished, run_timed

TORCH = "torch==2.13.0"
SAVE, RETURN, CONTINUE = "1", "5", "1"
"""Entries of the menus: save to a folder; back to the list of trials; results of the previous run."""
Settings = Callable[[Job, Path, Sequence[str]], Mapping[str, Any]]
"""From the job, the run's folder and the tool's refusal markers to the settings."""


@dataclass(frozen=True)
class Tool:
    """What distinguishes one of the tools."""

    distribution: str
    version: str
    command: tuple[str, ...]
    """A script of the environment's bin/ and its first arguments; the model's path is added."""
    settings_file: str
    settings: Settings
    markers: str
    """A Python expression for its own list of refusal markers."""
    after_path: tuple[str, ...] = ()
    """What it asks after the folder to save to."""

    @property
    def package(self) -> str:
        """As pip is asked for it."""
        return f"{self.distribution}=={self.version}"


@dataclass(frozen=True)
class Peer(Contestant):
    """A tool as installed in an environment."""

    tool: Tool
    environment: Path

    def identity(self) -> str:
        """Its version, which `make_environment` has checked."""
        return f"{self.tool.distribution} {self.tool.version}"

    def run(self, job: Job, folder: Path, tick: Tick) -> Outcome:
        """Load, search, take the first trial of the list (fewest refusals), save it merged to `chosen/`."""
        folder.mkdir(parents=True)
        markers = default_markers(self.tool, self.environment)
        settings = toml(self.tool.settings(job, folder, markers))
        (folder / self.tool.settings_file).write_text("\n".join(settings) + "\n", encoding="utf-8")
        # The length of the list is not known beforehand. Numbers beyond its end are asked for again, and its last
        # entry ends the program, so counting down ends it.
        leave = map(str, range(job.trials + 2, 1, -1))
        done = self._start(job, folder, "search.log", ["1", *self._export("chosen"), *leave], tick)
        study = read_journal(journal_of(folder), lines_of(job.source("target_val")))
        front = [study.trial(number) for number in listed_trials(_read(folder / "search.log"))]
        return Outcome(
            done,
            study.search_seconds,
            {_name(trial): trial.to_json() for trial in front},
            _name(front[0]),
            search_processor_seconds=done.processor_between(study.start, study.end),
        )

    def export_front(self, job: Job, folder: Path, tick: Tick) -> dict[str, Path]:
        """Every trial of the list, merged, by a second process that continues the first's study."""
        numbers = listed_trials(_read(folder / "search.log"))
        places = [Path("front") / f"trial-{number}" for number in numbers]
        shutil.rmtree(folder / "front", ignore_errors=True)
        answers = [CONTINUE]
        for entry, place in enumerate(places, start=1):
            answers += [str(entry), *self._export(str(place))]
        answers.append(str(len(places) + 2))
        self._start(job, folder, "front.log", answers, tick)
        restored = restored_trials(_read(folder / "front.log"))
        if restored != numbers:
            raise ValueError(f"{self.tool.distribution} exported the trials {restored}, its list was {numbers}")
        return {f"trial {number}": folder / place for number, place in zip(numbers, places, strict=True)}

    def _export(self, place: str) -> list[str]:
        """In the menu of a trial: save it merged to `place`, and go back to the list."""
        return [SAVE, place, *self.tool.after_path, RETURN]

    def _start(self, job: Job, folder: Path, log: str, answers: Sequence[str], tick: Tick) -> Finished:
        program, *arguments = self.tool.command
        caches = {"HF_DATASETS_CACHE": str((folder / "datasets-cache").absolute())}
        return run_timed(
            [(self.environment / "bin" / program).absolute(), *arguments, "--model", job.model.resolve()],
            folder / log,
            folder=folder,
            environment={**job.threads, **caches, "KAGGLE_KERNEL_RUN_TYPE": "batch"},
            answers="".join(f"{answer}\n" for answer in answers),
            tick=tick,
        )


def make_environment(tool: Tool, folder: Path, say: Callable[[str], None]) -> Path:
    """The folder of the tool's environment, made if it is not there; ValueError where it holds another version."""
    python = folder / "bin" / "python"
    if not python.exists():
        say(f"making the environment {folder}")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    if _installed(tool, python) is None:
        say(f"installing {TORCH} {tool.package}")
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", TORCH, tool.package], check=True)
    if (found := _installed(tool, python)) != tool.version:
        raise ValueError(f"{folder} holds {tool.distribution} {found}, want {tool.version}: remove it")
    return folder


def default_markers(tool: Tool, environment: Path) -> list[str]:
    """The tool's own refusal markers, asked of the installed package."""
    asked = [str(environment / "bin" / "python"), "-c", f"import json; print(json.dumps({tool.markers}))"]
    return list(json.loads(subprocess.run(asked, check=True, capture_output=True, text=True).stdout))


def listed_trials(log: str) -> list[int]:
    """The numbers of the trials in the first list that a tool printed, in its order; ValueError where there is none."""
    found: list[int] = []
    for entry, number in re.findall(r"^\[(\d+)\] \[Trial +(\d+)\]", log, re.MULTILINE):
        if int(entry) <= len(found):
            break  # the list is printed again
        found.append(int(number))
    if not found:
        raise ValueError("the log shows no list of trials")
    return found


def restored_trials(log: str) -> list[int]:
    """The numbers of the trials whose models a tool restored, in order, by what it printed."""
    return [int(number) for number in re.findall(r"Restoring model from trial (\d+)", log)]


def journal_of(folder: Path) -> Path:
    """The one journal in a run's `checkpoints/`."""
    (journal,) = (folder / "checkpoints").glob("*.jsonl")
    return journal


def dataset_of(job: Job, stem: str, folder: Path) -> str:
    """A set of prompts as a local data set with one split, `train`, and one column, `text`."""
    place = (folder / "data" / stem).absolute()
    place.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(job.source(stem), place / "train.txt")
    return str(place)


def lines_of(file: Path) -> int:
    """How many prompts a file holds."""
    return len(file.read_text(encoding="utf-8").splitlines())


def toml(values: Mapping[str, Any]) -> Iterator[str]:
    """Lines of TOML: strings, numbers and lists of strings are written as in JSON, mappings as tables at the end."""
    tables = {key: value for key, value in values.items() if isinstance(value, Mapping)}
    yield from (f"{key} = {json.dumps(value)}" for key, value in values.items() if key not in tables)
    for key, table in tables.items():
        yield from ("", f"[{key}]", *toml(table))


def startup_trials(trials: int) -> int:
    """Random trials: 60 of the default 200, as by default; else a third."""
    return 60 if trials == 200 else max(1, trials // 3)


def _name(trial: PeerTrial) -> str:
    return f"trial {trial.index}"


def _read(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")


def _installed(tool: Tool, python: Path) -> str | None:
    """The installed version, None where there is none."""
    program = f"from importlib.metadata import version; print(version('{tool.distribution}'))"
    asked = subprocess.run([str(python), "-c", program], capture_output=True, text=True)
    return asked.stdout.strip() or None
