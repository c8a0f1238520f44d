"""The benchmark: the peers and ours, alternating, on the same models, seeds, prompts, budget, dtype and threads.

    python -m experiments.peers.bench --out runs/peers
    python -m experiments.peers.bench --organisms real --threads 1 --out runs/peers-real

What is done is not done again: stopped at any moment, the same command continues. A run that was cut off starts anew,
since its time would mean nothing, and so does one of other code, models or threads (key.json). Under `--out`:
`environments/` (the peers'), `organisms/`, and for every run a folder `ORGANISM/seed-N/CONTESTANT/` with job.json (its
own account) and judged.json; at the end results.json and table.md, which also show finished runs of contestants that
were not asked for this time.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
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

from experiments.peers import real
from experiments.peers.abliterix import ABLITERIX
from experiments.peers.heretic import HERETIC
from experiments.peers.iconoclast_llm import iconoclast
from experiments.peers.job import Contestant, Job
from experiments.peers.menus import Peer, make_environment
from experiments.peers.organisms import Recipe, read_recipe
from experiments.peers.ours import Ours
from experiments.peers.process import CommandError, run_timed, thread_environment
from experiments.peers.subjects import ORGANISM_BUDGET, subject_of
from experiments.peers.summary import markdown, summarise

if TYPE_CHECKING:
    from rich.progress import Progress

HERE = Path(__file__).parent
KL_TOKENS = 24
PEERS = {"heretic": HERETIC, "iconoclast": iconoclast(0), "iconoclast8": iconoclast(8), "abliterix": ABLITERIX}
"""The tools by what a contestant's name begins with; the 8 is the rank of the benign subspace."""
REAL_CONTESTANTS = ["heretic-60", "iconoclast-30", "iconoclast8-30", "abliterix-30", "ours"]
"""The others also answer neutral prompts in every trial: 30 of theirs are as many tokens as 60 of Heretic's."""
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
        """`ours` or a name in `PEERS`."""
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
    key |= {"model": _digest(job.model), "markers": list(job.markers)}
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


def finished(folder: Path, organism: str, seed: int) -> Iterator[dict[str, Any]]:
    """The records of all finished runs of an organism and seed."""
    for judged in sorted(folder.glob("*/judged.json")):
        run = judged.parent
        found = {"organism": organism, "seed": seed, "contestant": run.name}
        key, outcome = _read(run / "key.json"), _read(run / "job.json")
        yield {**found, "program": key["program"], "outcome": outcome, "judged": _read(judged)}


def joined(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Published results with those of new runs: of the same organism, seed and contestant the new one stands."""

    def run(record: dict[str, Any]) -> tuple[Any, ...]:
        return record["organism"], record["seed"], record["contestant"]

    replaced = {run(record) for record in new["records"]}
    records = [*(record for record in old["records"] if run(record) not in replaced), *new["records"]]
    return {"about": {**old["about"], **new["about"]}, "summary": summarise(records), "records": records}


def publish(results: dict[str, Any]) -> None:
    """Put the results among those beside this file, and their table into the README."""
    kept = HERE / "results.json"
    results = joined(_read(kept), results) if kept.is_file() else results
    table = markdown(results["summary"])
    _write(kept, results)
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
    runs = list(planned(given.organisms, given.seeds, given.contestants, given.out))
    tools: dict[str, Contestant] = {"ours": Ours()}
    for name in sorted({run.tool for run in runs} - {"ours"}):
        place = (given.environments or given.out / "environments") / PEERS[name].distribution
        tools[name] = Peer(PEERS[name], make_environment(PEERS[name], place, console.print))
    models = given.models or given.out / "organisms"
    subjects = {
        name: subject_of(name, recipe, models, given.out / name, given.one_bos, console.print)
        for name in given.organisms
    }
    records = []
    with _bars(console) as progress:
        for run in progress.track(runs, description="benchmark"):
            job = subjects[run.organism].job(run.trials, run.seed, threads)
            records.append(carry_out(run, tools[run.tool], job, progress, given.keep_models))
    done = {run.folder for run in runs}
    for organism, seed in itertools.product(given.organisms, given.seeds):
        place = given.out / organism / f"seed-{seed}"
        others = finished(place, organism, seed)
        records += [record for record in others if place / record["contestant"] not in done]
    summary = summarise(records)
    results = {"about": _about(given, recipe), "summary": summary, "records": records}
    table = markdown(summary)
    _write(given.out / "results.json", results)
    (given.out / "table.md").write_text(table + "\n", encoding="utf-8", newline="\n")
    if given.publish:
        publish(results)
    print(table)


def _judge(job: Job, models: dict[str, Path], folder: Path) -> None:
    """In a process of its own, so that no run can have left anything behind in it."""
    partial = folder / "judged.json.partial"
    named = [f"{name}={place}" for name, place in models.items()]
    given = ["--base", job.model, "--prompts", job.prompts, "--system", job.system, "--out", partial]
    lengths = ["--tokens", job.judged_tokens, "--kl-tokens", KL_TOKENS]
    if job.judge == "real_judge":
        given += ["--kept", job.prompts.with_name("base-answers.json")]
    command = [sys.executable, "-m", f"experiments.peers.{job.judge}", *given, *lengths, *named]
    run_timed(command, folder / "judge.log", environment=job.threads)
    partial.replace(folder / "judged.json")


def _digest(model: Path) -> str:
    """Of the files that make a model what it is here: weights, tokenizer, template."""
    digest = hashlib.sha256()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"):
        with (model / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _about(given: argparse.Namespace, recipe: Recipe) -> dict[str, Any]:
    """What the numbers depend on."""
    packages = ("iconoclast-tl", "torch", "transformers", "peft", "optuna")
    common = {
        **{PEERS[name].distribution: PEERS[name].version for name in PEERS},
        "python": platform.python_version(),
        "ours": {name: metadata.version(name) for name in packages},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": given.threads,
        "dtype": "float32",
        "kl_tokens": KL_TOKENS,
    }
    found: dict[str, Any] = {}
    if set(given.organisms) - {real.NAME}:
        organisms = {one.name: dict(one.training) or "shipped" for one in recipe.organisms}
        found = {**common, "one_bos": given.one_bos, "tokens": ORGANISM_BUDGET, "system": recipe.system}
        found["organisms"] = organisms
    if real.NAME in given.organisms:
        lengths = {"tokens": real.BUDGET, "judged_tokens": real.JUDGED_TOKENS}
        found[real.NAME] = {**common, **lengths, "wheel": real.WHEEL, "system": real.SYSTEM}
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.peers.bench",
        description="Run the peers and iconoclast_tl on the same models and judge all.",
    )
    parser.add_argument("--out", type=Path, help="folder of the runs (runs/peers; with --quick runs/peers-quick)")
    parser.add_argument("--organisms", nargs="+", metavar="NAME", help="organisms of organisms.toml (all), or real")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="seeds of the searches (0 1 2)")
    parser.add_argument(
        "--contestants",
        nargs="+",
        metavar="TOOL-TRIALS",
        help="heretic-N (N trials), iconoclast-N, iconoclast8-N, abliterix-N, ours, or ours-N (our TPE)",
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of both (all cores)")
    parser.add_argument("--environments", type=Path, help="folder of the peers' environments, made if not there")
    parser.add_argument("--models", type=Path, help="folder of organisms and real model, made if not there")
    parser.add_argument("--keep-models", action="store_true", help="keep the exported fronts")
    parser.add_argument("--one-bos", action="store_true", help="models whose tokenizer adds no second BOS")
    parser.add_argument("--quick", action="store_true", help="one organism, one seed, 4 trials: does it run at all?")
    parser.add_argument("--publish", action="store_true", help="write results.json and the README's table here")
    given = parser.parse_args()
    given.out = given.out or Path("runs/peers-quick" if given.quick else "runs/peers")
    given.organisms = given.organisms or (["a"] if given.quick else [one.name for one in read_recipe().organisms])
    only_real = given.organisms == [real.NAME]
    given.seeds = given.seeds or ([0] if given.quick or only_real else [0, 1, 2])
    full = REAL_CONTESTANTS if only_real else ["heretic-60", "ours", "heretic-200"]
    given.contestants = given.contestants or (["heretic-4", "ours"] if given.quick else full)
    return given


def _check(given: argparse.Namespace, recipe: Recipe) -> None:
    """ValueError for what no run could be made of."""
    known = [*(organism.name for organism in recipe.organisms), real.NAME]
    for name in given.organisms:
        if name not in known:
            raise ValueError(f"unknown organism {name}: want one of {', '.join(known)}")
    for name in given.contestants:
        tool, _, trials = name.partition("-")
        counted = trials.isdigit() and int(trials) >= 1
        if name != "ours" and not (tool in ("ours", *PEERS) and counted):
            tools = ", ".join(f"{one}-N" for one in PEERS)
            raise ValueError(f"unknown contestant {name}: want ours, ours-N, {tools}, N at least 1")
    if given.threads < 1:
        raise ValueError(f"--threads is {given.threads}: want at least 1")
    if given.one_bos and real.NAME in given.organisms:
        raise ValueError("--one-bos is of organisms: the real model's tokenizer adds no BOS")
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
