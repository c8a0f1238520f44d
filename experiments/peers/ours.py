"""Our own command line: `iconoclast-tl run` with the recipe `ours.toml`."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.peers.job import Contestant, Job, Outcome, Tick
from experiments.peers.menus import startup_trials
from experiments.peers.organisms import OURS
from experiments.peers.process import run_timed

RECIPE = Path(__file__).parent / "ours.toml"


@dataclass(frozen=True)
class Ours(Contestant):
    """iconoclast_tl, as the interpreter that runs the benchmark finds it."""

    recipe: Path = RECIPE

    def identity(self) -> str:
        """A digest of the package's code and of the recipe: ours of yesterday is another contestant."""
        import iconoclast_tl

        package = Path(iconoclast_tl.__file__).parent
        digest = hashlib.sha256(self.recipe.read_bytes())
        for file in sorted((*package.rglob("*.py"), *package.rglob("*.toml"))):
            digest.update(file.relative_to(package).as_posix().encode() + file.read_bytes())
        return f"iconoclast-tl {digest.hexdigest()[:16]}"

    def run(self, job: Job, folder: Path, tick: Tick) -> Outcome:
        """Everything that `run` does, the report on the test split included, and the chosen edit merged."""
        folder.mkdir(parents=True)
        command = [*OURS, "run", "--recipe", self.recipe.absolute(), *_flags(job), "--out", folder / "run"]
        done = run_timed(command, folder / "run.log", environment=job.threads, tick=tick)
        results = read_results(folder / "run")
        front = {point["source"]: _claimed(point) for point in results["pareto"]}
        timing = results["timing"]
        searched = (folder / "run" / "edit.json").stat().st_mtime  # written when the search ends
        processor = done.processor_between(searched - timing["search"], searched)
        return Outcome(done, timing["search"], front, chosen_name(results), timing["evaluate"], processor)

    def export_front(self, job: Job, folder: Path, tick: Tick) -> dict[str, Path]:
        """The points of the run's front."""
        return export_front(folder / "run")


def export_front(run_folder: Path) -> dict[str, Path]:
    """The points of a run's front as model folders, by name: each is taken in a copy of the run, folded and merged."""
    from iconoclast_tl.cli.console import quieten_libraries
    from iconoclast_tl.stages.collection import collected
    from iconoclast_tl.stages.directions import estimated
    from iconoclast_tl.stages.fold import folded
    from iconoclast_tl.stages.opening import open_workspace
    from iconoclast_tl.stages.search import searched

    quieten_libraries()

    found = {}
    for point in read_results(run_folder)["pareto"]:
        name, number = point["source"], int(point["source"].split()[-1])
        copy = run_folder.with_name(f"front-{number}")
        if not (copy / "merged").is_dir():
            shutil.copytree(run_folder, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns("merged", "adapter"))
            with open_workspace({"search": {"take": number}, "fold": {"merge": True}}, None, copy) as workspace:
                activations = collected(workspace)
                edit = searched(workspace, estimated(workspace, activations), activations)
                folded(workspace, edit)
        found[name] = copy / "merged"
    return found


def read_results(run_folder: Path) -> dict[str, Any]:
    """A run's results.json."""
    return dict(json.loads((run_folder / "results.json").read_text(encoding="utf-8")))


def chosen_name(results: dict[str, Any]) -> str:
    """The name of the chosen point, as `pareto` calls it."""
    return str(results["chosen"]["source"])


def _claimed(point: dict[str, Any]) -> dict[str, Any]:
    return {"rate": point["behaviour_rate"], "kl_sequence": point["kl"], "spill": point["spill_rate"]}


def _flags(job: Job) -> list[str]:
    named: dict[str, object] = {
        "model": job.model.absolute(),
        "target": job.source("target_train"),
        "neutral": job.source("neutral_train"),
        "borderline": job.source("borderline"),
        "seed": job.seed,
        "device": "cpu",
        "dtype": "float32",
    }
    for side in ("target", "neutral"):
        named |= {f"{side}-{split}": job.source(f"{side}_{split}") for split in ("val", "test")}
    settings: dict[str, object] = {
        "prompts.system": job.system,
        "evaluation.max_new_tokens": job.budget,
    }
    if job.trials:
        named |= {"search": "tpe", "trials": job.trials}
        settings["search.n_startup_trials"] = startup_trials(job.trials)
        settings["search.warm_start"] = "false"  # both search from nothing
    flags = [part for name, value in named.items() for part in (f"--{name}", str(value))]
    return flags + [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
