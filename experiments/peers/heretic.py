"""Heretic 1.4.0, unmodified: its environment, its settings, and its menus answered through a pipe.

It runs in an environment of its own, by its own command. What is set, and why: the same response budget, dtype, system
message and prompts as ours; the seed; the number of trials, a third of them random. Its list of refusal markers is its
own (read from the installed package), with the organism's one phrase added that the list does not know. Everything else
is left at its defaults, the search for a batch size and for a common response prefix included.

`KAGGLE_KERNEL_RUN_TYPE` makes its menus read numbers from standard input. It takes no other notice of that variable.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.peers.job import Contestant, Job, Outcome, Tick
from experiments.peers.journal import HereticTrial, pareto_list, read_journal
from experiments.peers.process import Finished, run_timed

VERSION = "1.4.0"
PACKAGES = ("torch==2.13.0", f"heretic-llm=={VERSION}")
ADDED_MARKERS = ("i must decline",)
"""Refusal phrases of the organism that Heretic's own list does not recognise."""
SAVE, MERGE, RETURN, CONTINUE = "1", "1", "5", "1"
"""Entries of its menus: save to a folder; merged weights; back to the list of trials; results of the previous run."""


@dataclass(frozen=True)
class Heretic(Contestant):
    """Heretic, as installed in an environment."""

    environment: Path

    def identity(self) -> str:
        """Its version, which `make_environment` has checked."""
        return f"heretic-llm {VERSION}"

    def run(self, job: Job, folder: Path, tick: Tick) -> Outcome:
        """Load, search, take the first trial of the list (fewest refusals), save it merged to `chosen/`."""
        folder.mkdir(parents=True)
        settings = _settings(job, default_markers(self.environment))
        (folder / "config.toml").write_text(settings, encoding="utf-8")
        # The length of the list is not known beforehand. Numbers beyond its end are asked for again, and its last
        # entry ends the program, so counting down ends it.
        leave = map(str, range(job.trials + 2, 1, -1))
        done = _heretic(self.environment, job, folder, "search.log", ["1", *_export("chosen"), *leave], tick)
        study = read_journal(journal_of(folder))
        front = pareto_list(study.trials)
        return Outcome(done, study.search_seconds, {_name(one): one.to_json() for one in front}, _name(front[0]))

    def export_front(self, job: Job, folder: Path, tick: Tick) -> dict[str, Path]:
        """Every trial of the list, merged, by a second process that continues the first's study."""
        front = pareto_list(read_journal(journal_of(folder)).trials)
        places = {_name(trial): Path("front") / f"trial-{trial.index}" for trial in front}
        shutil.rmtree(folder / "front", ignore_errors=True)
        answers = [CONTINUE]
        for number, place in enumerate(places.values(), start=1):
            answers += [str(number), *_export(str(place))]
        answers.append(str(len(places) + 2))
        _heretic(self.environment, job, folder, "front.log", answers, tick)
        restored = restored_trials((folder / "front.log").read_text(encoding="utf-8", errors="replace"))
        if restored != [trial.index for trial in front]:
            raise ValueError(f"Heretic exported the trials {restored}, its journal lists {[t.index for t in front]}")
        return {name: folder / place for name, place in places.items()}


def make_environment(folder: Path, say: Callable[[str], None]) -> Path:
    """The folder of an environment with Heretic, made if it is not there; ValueError where it holds another version."""
    python = folder / "bin" / "python"
    if not python.exists():
        say(f"making the environment {folder}")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    if _installed(python) is None:
        say(f"installing {' '.join(PACKAGES)}")
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    if (found := _installed(python)) != VERSION:
        raise ValueError(f"{folder} holds heretic-llm {found}, want {VERSION}: pass another --heretic-env")
    return folder


def default_markers(environment: Path) -> list[str]:
    """Heretic's own refusal markers, asked of the installed package."""
    program = "import json; from heretic.config import Settings as S; "
    program += "print(json.dumps(S.model_fields['refusal_markers'].default))"
    asked = [str(environment / "bin" / "python"), "-c", program]
    return list(json.loads(subprocess.run(asked, check=True, capture_output=True, text=True).stdout))


def restored_trials(log: str) -> list[int]:
    """The numbers of the trials whose models it restored, in order, by what it printed."""
    return [int(number) for number in re.findall(r"Restoring model from trial (\d+)", log)]


def journal_of(folder: Path) -> Path:
    """The one journal in a run's `checkpoints/`."""
    (journal,) = (folder / "checkpoints").glob("*.jsonl")
    return journal


def toml(values: Mapping[str, Any]) -> Iterator[str]:
    """Lines of TOML: strings, numbers and lists of strings are written as in JSON, mappings as tables at the end."""
    tables = {key: value for key, value in values.items() if isinstance(value, Mapping)}
    yield from (f"{key} = {json.dumps(value)}" for key, value in values.items() if key not in tables)
    for key, table in tables.items():
        yield from ("", f"[{key}]", *toml(table))


def _settings(job: Job, markers: list[str]) -> str:
    files = {
        "good_prompts": "neutral_train",
        "bad_prompts": "target_train",
        "good_evaluation_prompts": "neutral_val",
        "bad_evaluation_prompts": "target_val",
    }
    values: dict[str, Any] = {
        "dtypes": [job.dtype],
        "seed": job.seed,
        "n_trials": job.trials,
        "n_startup_trials": startup_trials(job.trials),
        "max_response_length": job.budget,
        "system_prompt": job.system,
        "refusal_markers": [*markers, *ADDED_MARKERS],
        **{key: {"dataset": str(job.source(stem))} for key, stem in files.items()},
    }
    return "\n".join(toml(values)) + "\n"


def startup_trials(trials: int) -> int:
    """Random trials: 60 of the default 200, as by default; else a third."""
    return 60 if trials == 200 else max(1, trials // 3)


def _name(trial: HereticTrial) -> str:
    return f"trial {trial.index}"


def _export(place: str) -> list[str]:
    """In the menu of a trial: save it merged to `place`, and go back to the list."""
    return [SAVE, place, MERGE, RETURN]


def _heretic(
    environment: Path, job: Job, folder: Path, log: str, answers: list[str], tick: Callable[[], None]
) -> Finished:
    command = [(environment / "bin" / "heretic").absolute(), "--model", job.model.resolve()]
    return run_timed(
        command,
        folder / log,
        folder=folder,
        environment={**job.threads, "KAGGLE_KERNEL_RUN_TYPE": "batch"},
        answers="".join(f"{answer}\n" for answer in answers),
        tick=tick,
    )


def _installed(python: Path) -> str | None:
    """The installed version of heretic-llm, None where there is none."""
    program = "from importlib.metadata import version; print(version('heretic-llm'))"
    asked = subprocess.run([str(python), "-c", program], capture_output=True, text=True)
    return asked.stdout.strip() or None
