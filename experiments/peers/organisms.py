"""The organisms of the benchmark and their prompts as plain text, which both tools read.

An organism's contrast set gives some prompts a system message of their own. Heretic knows one for a whole run, so here
every prompt is its text alone, under the one system message of the recipe, for both tools and for the judge.

An organism's chat template writes the BOS token and its tokenizer adds one too, as Llama's do. Heretic tokenises the
rendered template with special tokens and so searches on prompts that begin with two. `copy_with_one_bos` makes a model
on which it sees the tokens that the template means.
"""

from __future__ import annotations

import json
import shutil
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.peers.process import run_timed, thread_environment

RECIPE = Path(__file__).parent / "organisms.toml"
OURS = (sys.executable, "-c", "from iconoclast_tl.cli import main; main()")
"""Our command line, as a command."""


@dataclass(frozen=True)
class Organism:
    """A model whose truth is known."""

    name: str
    training: Mapping[str, Any]
    """Training settings, the seed among them; empty for the shipped one."""


@dataclass(frozen=True)
class Recipe:
    """The benchmark's models and the system message of all prompts."""

    organisms: tuple[Organism, ...]
    system: str


def read_recipe(file: Path = RECIPE) -> Recipe:
    """The recipe in `file`."""
    found = tomllib.loads(file.read_text(encoding="utf-8"))
    organisms = (Organism(name, {} if one.get("shipped") else one) for name, one in found["organisms"].items())
    return Recipe(tuple(organisms), found["system"])


def ensure_organism(organism: Organism, folder: Path, say: Callable[[str], None]) -> Path:
    """The organism's model folder: the shipped one's, or that in `folder`, trained if it is not there."""
    if not organism.training:
        from iconoclast_tl.organisms.folder import shipped_folder

        return shipped_folder()
    place = folder / organism.name
    if not place.is_dir():
        say(f"training organism {organism.name}, which takes some minutes")
        settings = {key: value for key, value in organism.training.items() if key != "seed"}
        flags = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        partial = place.with_name(f"{organism.name}.partial")  # one that does not behave is never taken for an organism
        shutil.rmtree(partial, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        command = [*OURS, "organism", "train", "--seed", organism.training["seed"], *flags, "--out", partial]
        run_timed(command, folder / f"{organism.name}.log", environment=thread_environment(1))
        partial.rename(place)
    _require_as_trained(organism, place)
    return place


def copy_with_one_bos(model: Path, place: Path) -> Path:
    """The model at `place`, its tokenizer without the step that adds special tokens; the template still writes them."""
    if not place.is_dir():
        partial = place.with_name(f"{place.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(model, partial)
        tokenizer = json.loads((partial / "tokenizer.json").read_text(encoding="utf-8"))
        tokenizer["post_processor"] = None
        (partial / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
        partial.rename(place)
    return place


def write_prompts(model: Path, folder: Path) -> Path:
    """The organism's contrast set as .txt files of one prompt a line, by the same names; `folder` again."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted((model / "contrast").glob("*.jsonl")):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        text = "".join(f"{row['prompt']}\n" for row in rows)
        (folder / f"{file.stem}.txt").write_text(text, encoding="utf-8", newline="\n")
    return folder


def _require_as_trained(organism: Organism, place: Path) -> None:
    """ValueError where the folder holds an organism of other settings."""
    trained = json.loads((place / "organism.json").read_text(encoding="utf-8"))["training"]
    for key, value in organism.training.items():
        if trained[key] != value:
            raise ValueError(f"{place} was trained with {key}={trained[key]}, want {value}: remove it to train again")
