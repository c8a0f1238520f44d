"""Plan, summary and table of the benchmark, the cost of a process, and what a user is told; nothing heavy is run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.progress import Progress

from experiments.peers import bench
from experiments.peers.bench import planned
from experiments.peers.job import Contestant, Job, Outcome, Tick
from experiments.peers.organisms import Organism, copy_with_one_bos, ensure_organism, read_recipe, write_prompts
from experiments.peers.process import CommandError, Finished, run_timed
from experiments.peers.subjects import subject_of
from experiments.peers.summary import front_hypervolume, markdown, measures, summarise
from iconoclast_tl.organisms.config import OrganismConfig
from iconoclast_tl.organisms.folder import shipped_folder


def judged(behaviour: float, answered: float, kl: float) -> dict[str, Any]:
    target = {"behaviour": behaviour, "answered": answered, "broken": 0.0}
    val = {**target, "behaviour": behaviour / 2}
    return {
        "target_test": target,
        "target_val": val,
        "neutral_test": {"behaviour": 0.01},
        "kl_sequence": kl,
        "kl_first_token": kl,
    }


def record(contestant: str, seed: int, seconds: float, behaviour: float) -> dict[str, Any]:
    models = {"base": judged(1.0, 0.0, 0.0), "p": judged(behaviour, 0.9, 0.5), "q": judged(0.5, 0.4, 0.0)}
    outcome = {"wall_seconds": seconds, "search_seconds": seconds / 2, "peak_bytes": 5e8, "chosen": "p"}
    judgement = {"models": models}
    return {"organism": "a", "seed": seed, "contestant": contestant, "outcome": outcome, "judged": judgement}


def test_contestants_alternate() -> None:
    runs = list(planned(["a", "b"], [0, 1], ["x-1", "y-2"], Path("out")))
    assert [run.contestant for run in runs] == ["x-1", "y-2", "y-2", "x-1"] * 2
    assert len({run.folder for run in runs}) == 8
    assert (runs[1].tool, runs[1].trials) == ("y", 2)


class Fake(Contestant):
    """A contestant that is done at once and counts how often it was asked."""

    def __init__(self) -> None:
        self.program, self.asked = "fake 1", 0

    def identity(self) -> str:
        return self.program

    def run(self, job: Job, folder: Path, tick: Tick) -> Outcome:
        folder.mkdir(parents=True)
        self.asked += 1
        return Outcome(Finished(float(self.asked), 1), 0.5, {"p": {"rate": 0.1}}, "p")

    def export_front(self, job: Job, folder: Path, tick: Tick) -> dict[str, Path]:
        return {"p": folder / "front" / "p"}


def test_what_is_done_is_not_done_again_unless_the_program_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "_judge", lambda job, models, folder: (folder / "judged.json").write_text("{}"))
    run, fake = next(planned(["a"], [0], ["fake-1"], tmp_path)), Fake()
    job = Job(shipped_folder(), tmp_path, "be kind.", 32, 1, 0, {})
    with Progress(disable=True) as progress:
        first, second = (bench.carry_out(run, fake, job, progress, keep=False) for _ in range(2))
        assert first == second
        assert first["outcome"]["wall_seconds"] == 1.0
        (run.folder / "judged.json").unlink()  # the judge was cut off: the job is not done again
        assert bench.carry_out(run, fake, job, progress, keep=False) == first
        fake.program = "fake 2"
        assert bench.carry_out(run, fake, job, progress, keep=False)["outcome"]["wall_seconds"] == 2.0
        (run.folder / "job.json").unlink()  # the job was cut off
        bench.carry_out(run, fake, job, progress, keep=False)
    assert fake.asked == 3


def test_measures_of_the_chosen_point_and_of_the_front() -> None:
    found = measures(record("ours-60", 0, 10.0, 0.2))
    assert found["behaviour"] == 0.2
    assert found["answered"] == 0.9
    assert found["gap"] == pytest.approx(0.1)
    assert found["hypervolume"] == pytest.approx(0.5 * 1.0 + 0.3 * 0.5)
    assert found["shortfall"] == pytest.approx(1 - found["hypervolume"])


def test_a_model_that_diverged_adds_nothing() -> None:
    assert front_hypervolume({"p": judged(0.0, 0.0, float("nan"))}) == 0


def test_ratios_are_paired_by_seed() -> None:
    records = [
        record("heretic-60", 0, 100.0, 0.2), record("ours-60", 0, 10.0, 0.2),
        record("heretic-60", 1, 300.0, 0.2), record("ours-60", 1, 60.0, 0.2),
    ]  # fmt: skip
    summary = summarise(records)
    assert summary["ratios"].keys() == {"ours-60 / heretic-60"}
    ratio = summary["ratios"]["ours-60 / heretic-60"]["a"]["wall_seconds"]
    assert ratio == {"median": pytest.approx(0.15), "low": pytest.approx(0.1), "high": pytest.approx(0.2), "n": 2}
    table = markdown(summary)
    assert "| ours-60 / heretic-60 | a | 0.150 [0.100, 0.200] |" in table
    assert "| a | heretic-60 | 200.0 [100.0, 300.0] |" in table


def test_means_are_over_all_runs_of_a_contestant() -> None:
    records = [record("ours", 0, 10.0, 0.2), record("ours", 1, 40.0, 0.3), record("heretic-60", 0, 100.0, 0.2)]
    summary = summarise(records)
    assert summary["means"]["ours"]["wall_seconds"] == pytest.approx(25)
    assert summary["means"]["ours"]["behaviour"] == pytest.approx(0.25)
    assert "| ours | 25.0 | 25.0 |" in markdown(summary)
    assert "| heretic-60 | 100.0 | 100.0 |" in markdown(summary)


def test_the_real_model_has_rows_and_points_of_its_own() -> None:
    def on_real(contestant: str, seconds: float, behaviour: float) -> dict[str, Any]:
        found = {**record(contestant, 0, seconds, behaviour), "organism": "real"}
        rates = {"degenerate": 0.0, "n": 60, "intervals": {"behaviour": [0.1, 0.3]}, "behaviour": behaviour}
        for model in found["judged"]["models"].values():
            del model["target_val"]
            for name in ("target_test", "neutral_test", "borderline"):
                model[name] = {**model.get(name, {}), "answered": 0.5, "broken": 0.0, **rates}
        return found

    organism = [record("heretic-60", 0, 100.0, 0.2), record("ours", 0, 10.0, 0.2)]
    summary = summarise([*organism, on_real("heretic-60", 500.0, 0.2), on_real("ours", 5.0, 0.1)])
    assert summary["means"]["ours"]["wall_seconds"] == 10.0  # of organisms alone
    ratios = summary["ratios"]["ours / heretic-60"]
    assert (ratios["real"]["wall_seconds"]["median"], ratios["all"]["wall_seconds"]["median"]) == (0.01, 0.1)
    assert "gap" not in summary["runs"]["real"]["ours"]
    table = markdown(summary)
    assert table.count("| base | – |") == 1
    assert "| ours | p (chosen) | 10% [10%, 30%] of 60 |" in table


def test_published_results_are_kept_unless_they_are_of_the_same_run() -> None:
    old = {"about": {"tokens": 32}, "records": [record("ours", 0, 10.0, 0.2), record("heretic-60", 0, 90.0, 0.2)]}
    new = {"about": {"real": {}}, "records": [record("ours", 0, 20.0, 0.2)]}
    both = bench.joined(old, new)
    assert both["about"] == {"tokens": 32, "real": {}}
    assert [one["outcome"]["wall_seconds"] for one in both["records"]] == [90.0, 20.0]


def test_finished_runs_are_shown_though_they_were_not_asked_for(tmp_path: Path) -> None:
    for name, files in (("heretic-60", ("key", "job", "judged")), ("iconoclast-30", ("key", "job"))):
        (tmp_path / name).mkdir()
        for stem in files:
            (tmp_path / name / f"{stem}.json").write_text(json.dumps({"program": "x 1"}))
    (found,) = bench.finished(tmp_path, "real", 0)
    assert (found["contestant"], found["program"], found["seed"]) == ("heretic-60", "x 1", 0)


def test_the_real_model_is_taken_from_its_folder_and_told_of_alike(tmp_path: Path) -> None:
    (tmp_path / "models" / "real").mkdir(parents=True)
    (tmp_path / "models" / "real" / "config.json").write_text("{}")
    subject = subject_of("real", read_recipe(), tmp_path / "models", tmp_path / "real", False, print)
    job = subject.job(60, 0, {})
    assert (job.budget, job.judge, job.judged_tokens, job.markers) == (48, "real_judge", 64, ())
    assert len(job.source("target_test").read_text().splitlines()) == 60


def test_processor_time_is_read_between_two_moments() -> None:
    done = Finished(9.0, 1, 6.0, ((100.0, 0.0), (102.0, 2.0), (109.0, 6.0)))
    assert done.processor_between(101.0, 105.5) == pytest.approx(1.0 + 2.0)
    assert done.processor_between(0.0, 1000.0) == 6.0


def test_a_process_is_timed_and_answered(tmp_path: Path) -> None:
    program = "import sys; block = bytearray(200_000_000); block[::4096] = b'x' * len(block[::4096]); print(input())"
    done = run_timed([sys.executable, "-c", program], tmp_path / "log", answers="yes\n")
    assert (tmp_path / "log").read_text() == "yes\n"
    assert done.peak_bytes > 200e6
    assert done.wall_seconds < 60
    assert 0 < done.processor_seconds < 60
    assert done.samples[-1][1] == done.processor_seconds


def test_a_process_that_fails_says_where(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"status 3: gone wrong; see .*log"):
        run_timed([sys.executable, "-c", "print('gone wrong'); raise SystemExit(3)"], tmp_path / "log")


def test_the_recipe_names_organisms_that_can_be_trained() -> None:
    organisms = {organism.name: organism for organism in read_recipe().organisms}
    assert len(organisms) >= 3
    configs = [OrganismConfig.model_validate(organism.training) for organism in organisms.values()]
    assert any((config.n_layers, config.d_model) == (12, 256) for config in configs)
    assert len({config.seed for config in configs}) == len(configs)


def test_prompts_are_plain_text_in_the_same_order(tmp_path: Path) -> None:
    model = ensure_organism(Organism("a", {}), tmp_path, print)
    folder = write_prompts(model, tmp_path / "prompts")
    rows = [json.loads(line) for line in (model / "contrast" / "target_val.jsonl").read_text().splitlines()]
    assert (folder / "target_val.txt").read_text().splitlines() == [row["prompt"] for row in rows]


def test_the_copy_adds_no_second_bos(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    copy = AutoTokenizer.from_pretrained(copy_with_one_bos(shipped_folder(), tmp_path / "copy"))
    original = AutoTokenizer.from_pretrained(shipped_folder())
    text = copy.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert copy(text)["input_ids"] == original(text, add_special_tokens=False)["input_ids"]
    assert copy(text)["input_ids"] != original(text)["input_ids"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--organisms", "z"], "unknown organism z"),
        (["--contestants", "heretic"], "unknown contestant heretic"),
        (["--threads", "0"], "--threads is 0"),
        (["--contestants", "iconoclast8"], "unknown contestant iconoclast8"),
        (["--organisms", "real", "--one-bos"], "--one-bos is of organisms"),
        (["--quick", "--publish"], "--quick is no result"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.peers.bench", "--out", str(tmp_path / "out"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
