"""The benchmark: Heretic and ours, alternating, on the same organisms, seeds, prompts, budget, dtype and threads.

    python -m experiments.peers.bench --out runs/peers

What is done is not done again: stopped at any moment, the same command continues. A run that was cut off starts anew,
since its time would mean nothing, and so does one of other code, models or threads (key.json). Under `--out`:
`environment/` (Heretic's), `organisms/`, and for every run a folder `ORGANISM/seed-N/CONTESTANT/` with job.json (its
own account) and judged.json; at the end results.json and table.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.peers.heretic import VERSION, Heretic, make_environment
from experiments.peers.job import Contestant, Job
from experiments.peers.organisms import Recipe, copy_with_one_bos, ensure_organism, read_recipe, write_prompts
from experiments.peers.ours import Ours
from experiments.peers.process import CommandError, run_timed, thread_environment
from experiments.peers.summary import markdown, summarise

if TYPE_CHECKING:
    from rich.progress import Progress

HERE = Path(__file__).parent
BUDGET, KL_TOKENS = 32, 24
BEGIN, END = "<!-- results -->", "<!-- /results -->"
"""Between these lines of the README stands the table."""


@dataclass(frozen=True)
class Run:
    """One cell of the benchmark."""

    organism: str
    seed: int
    contestant: str
    """Tool and trials, such as `heretic-60`; `ours` alone is our default search, which has no trials."""
    folder: Path

    @property
    def tool(self) -> str:
        """`heretic` or `ours`."""
        return self.contestant.partition("-")[0]

    @property
    def trials(self) -> int:
        """Trials of its search; 0 for one without."""
        return int(self.contestant.partition("-")[2] or 0)

    @property
    def label(self) -> str:
        """How the run is called while it runs."""
        return f"{self.organism}, seed {self.seed}: {self.contestant}"


def planned(organisms: Sequence[str], seeds: Sequence[int], contestants: Sequence[str], out: Path) -> Iterator[Run]:
    """All runs in order: contestants alternate, and from one round to the next they change who is first."""
    rounds = [(organism, seed) for seed in seeds for organism in organisms]
    for number, (organism, seed) in enumerate(rounds):
        for contestant in contestants if number % 2 == 0 else reversed(contestants):
            yield Run(organism, seed, contestant, out / organism / f"seed-{seed}" / contestant)


def carry_out(run: Run, tool: Contestant, job: Job, progress: Progress, keep: bool) -> dict[str, Any]:
    """Bring one run to its record: the job, the export of its front, the judge; each unless it is there."""
    outcome_file, judged_file, key_file = (run.folder / f"{stem}.json" for stem in ("job", "judged", "key"))
    key = {"program": tool.identity(), "environment": dict(job.threads), "budget": job.budget, "system": job.system}
    key["model"] = _digest(job.model)
    task = progress.add_task(run.label, total=None)

    def step(what: str) -> None:
        progress.update(task, description=f"{run.label}: {what}")

    if not outcome_file.is_file() or _read(key_file) != key:
        step("runs")
        if run.folder.exists():
            shutil.rmtree(run.folder)
        outcome = tool.run(job, run.folder, progress.refresh).to_json()
        _write(key_file, key)
        _write(outcome_file, outcome)
    if not judged_file.is_file():
        step("exports its front")
        models = tool.export_front(job, run.folder, progress.refresh)
        step(f"is judged, {len(models)} points")
        _judge(job, models, run.folder)
        if not keep:
            shutil.rmtree(run.folder / "front", ignore_errors=True)
    progress.remove_task(task)
    found = {"organism": run.organism, "seed": run.seed, "contestant": run.contestant}
    return {**found, "program": key["program"], "outcome": _read(outcome_file), "judged": _read(judged_file)}


def publish(results: dict[str, Any], table: str) -> None:
    """Put the results beside this file and the table into the README."""
    _write(HERE / "results.json", results)
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    (HERE / "README.md").write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8", newline="\n")


def main() -> None:
    """Parse, run, print: exit 0 done, 2 for a mistake in what was asked, 1 for a run that failed."""
    given = _arguments()
    recipe = read_recipe()
    try:
        _check(given, recipe)
        _bench(given, recipe)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (CommandError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        sys.exit(1)


def _bench(given: argparse.Namespace, recipe: Recipe) -> None:
    from rich.console import Console

    console = Console(stderr=True)
    threads = thread_environment(given.threads)
    environment = make_environment(given.heretic_env or given.out / "environment", console.print)
    tools: dict[str, Contestant] = {"heretic": Heretic(environment), "ours": Ours()}
    models = {
        organism.name: ensure_organism(organism, given.models or given.out / "organisms", console.print)
        for organism in recipe.organisms
        if organism.name in given.organisms
    }
    if given.one_bos:
        models = {name: copy_with_one_bos(model, given.out / name / "model") for name, model in models.items()}
    prompts = {name: write_prompts(model, given.out / name / "prompts") for name, model in models.items()}
    runs = list(planned(given.organisms, given.seeds, given.contestants, given.out))
    records = []
    with _bars(console) as progress:
        for run in progress.track(runs, description="benchmark"):
            model, texts = models[run.organism], prompts[run.organism]
            job = Job(model, texts, recipe.system, BUDGET, run.trials, run.seed, threads)
            records.append(carry_out(run, tools[run.tool], job, progress, given.keep_models))
    summary = summarise(records)
    results = {"about": _about(given, recipe), "summary": summary, "records": records}
    table = markdown(summary)
    _write(given.out / "results.json", results)
    (given.out / "table.md").write_text(table + "\n", encoding="utf-8", newline="\n")
    if given.publish:
        publish(results, table)
    print(table)


def _judge(job: Job, models: dict[str, Path], folder: Path) -> None:
    """In a process of its own, so that no run can have left anything behind in it."""
    partial = folder / "judged.json.partial"
    named = [f"{name}={place}" for name, place in models.items()]
    given = ["--base", job.model, "--prompts", job.prompts, "--system", job.system, "--out", partial]
    lengths = ["--tokens", str(job.budget), "--kl-tokens", str(KL_TOKENS)]
    command = [sys.executable, "-m", "experiments.peers.judge", *given, *lengths, *named]
    run_timed(command, folder / "judge.log", environment=job.threads)
    partial.replace(folder / "judged.json")


def _digest(model: Path) -> str:
    """Of the files that make a model what it is here: weights, tokenizer, template."""
    digest = hashlib.sha256()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"):
        digest.update((model / name).read_bytes())
    return digest.hexdigest()[:16]


def _about(given: argparse.Namespace, recipe: Recipe) -> dict[str, Any]:
    """What the numbers depend on."""
    packages = ("iconoclast-tl", "torch", "transformers", "peft", "optuna")
    return {
        "heretic-llm": VERSION,
        "python": platform.python_version(),
        "ours": {name: metadata.version(name) for name in packages},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": given.threads,
        "dtype": "float32",
        "one_bos": given.one_bos,
        "tokens": BUDGET,
        "kl_tokens": KL_TOKENS,
        "system": recipe.system,
        "organisms": {one.name: dict(one.training) or "shipped" for one in recipe.organisms},
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.peers.bench",
        description="Run Heretic and iconoclast_tl on the same organisms and judge both.",
    )
    parser.add_argument("--out", type=Path, help="folder of the runs (runs/peers; with --quick runs/peers-quick)")
    parser.add_argument("--organisms", nargs="+", metavar="NAME", help="organisms of organisms.toml (all)")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="seeds of the searches (0 1 2)")
    parser.add_argument(
        "--contestants",
        nargs="+",
        metavar="TOOL-TRIALS",
        help="heretic-N (N trials), ours, or ours-N (our TPE) (heretic-60 ours heretic-200)",
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of both (all cores)")
    parser.add_argument("--heretic-env", type=Path, help="its environment, made if it is not there")
    parser.add_argument("--models", type=Path, help="folder of trained organisms, made if it is not there")
    parser.add_argument("--keep-models", action="store_true", help="keep the exported fronts")
    parser.add_argument("--one-bos", action="store_true", help="models whose tokenizer adds no second BOS")
    parser.add_argument("--quick", action="store_true", help="one organism, one seed, 4 trials: does it run at all?")
    parser.add_argument("--publish", action="store_true", help="write results.json and the README's table here")
    given = parser.parse_args()
    given.out = given.out or Path("runs/peers-quick" if given.quick else "runs/peers")
    given.organisms = given.organisms or (["a"] if given.quick else [one.name for one in read_recipe().organisms])
    given.seeds = given.seeds or ([0] if given.quick else [0, 1, 2])
    full = ["heretic-60", "ours", "heretic-200"]
    given.contestants = given.contestants or (["heretic-4", "ours"] if given.quick else full)
    return given


def _check(given: argparse.Namespace, recipe: Recipe) -> None:
    """ValueError for what no run could be made of."""
    known = [organism.name for organism in recipe.organisms]
    for name in given.organisms:
        if name not in known:
            raise ValueError(f"unknown organism {name}: want one of {', '.join(known)}")
    for name in given.contestants:
        tool, _, trials = name.partition("-")
        counted = trials.isdigit() and int(trials) >= 1
        if name != "ours" and not (tool in ("heretic", "ours") and counted):
            raise ValueError(f"unknown contestant {name}: want ours, heretic-N or ours-N, N at least 1")
    if given.threads < 1:
        raise ValueError(f"--threads is {given.threads}: want at least 1")
    if given.publish and given.quick:
        raise ValueError("--quick is no result: leave out --publish")


def _bars(console: Any) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<40}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _write(file: Path, value: Any) -> None:
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    partial.replace(file)


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
