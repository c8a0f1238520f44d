"""A peer's study from a journal of its shape, written with Optuna trial by trial, and what its menus print."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

from experiments.peers.abliterix import ABLITERIX
from experiments.peers.heretic import HERETIC
from experiments.peers.iconoclast_llm import iconoclast
from experiments.peers.job import Job
from experiments.peers.journal import read_journal
from experiments.peers.menus import Tool, listed_trials, restored_trials, startup_trials, toml

SCORES = [(40, 0.002), (4, 0.02), (4, 0.03), (20, 0.005), (30, 0.006), (40, 0.001)]
"""(refusals, KL) of trials 1 to 6."""


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    file = tmp_path / "model.jsonl"
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(file)))
    study = optuna.create_study(study_name="heretic", storage=storage, directions=["minimize", "minimize"])
    for index, (refusals, kl) in enumerate(SCORES, start=1):
        trial = study.ask()
        counted = {"index": index, "refusals": refusals, "kl_divergence": kl, "base_refusals": 98}
        for key, value in counted.items():
            trial.set_user_attr(key, value)
        study.tell(trial, [kl, refusals / 98])
    study.ask()  # one that was cut off
    return file


def test_finished_trials_are_read_and_time_passed(journal: Path) -> None:
    study = read_journal(journal, 100)
    assert [(trial.refusals, trial.kl_first_token) for trial in study.trials] == SCORES
    assert [trial.index for trial in study.trials] == [1, 2, 3, 4, 5, 6]
    assert 0 < study.search_seconds < 60
    assert study.trial(2).to_json() == {"index": 2, "refusals": 4, "n": 100, "kl_first_token": 0.02, "rate": 0.04}


def test_the_list_is_the_first_that_it_printed() -> None:
    menu = "Which trial?\n[1] [Trial  12] Refusals:  0/60, KL\n[2] [Trial   7] Refusals:  9/60, KL\n[3] Run more\n"
    assert listed_trials(menu + menu) == [12, 7]
    with pytest.raises(ValueError, match="no list of trials"):
        listed_trials("[1] Show the results\n")


def test_an_empty_journal_is_no_study(tmp_path: Path) -> None:
    file = tmp_path / "empty.jsonl"
    file.touch()
    with pytest.raises(ValueError, match="no finished trial"):
        read_journal(file, 100)


@pytest.mark.parametrize("tool", [HERETIC, iconoclast(8), ABLITERIX], ids=lambda tool: tool.distribution)
def test_all_tools_are_told_the_same(tool: Tool, tmp_path: Path) -> None:
    import tomllib

    for stem in ("target_train", "neutral_train", "target_val", "neutral_val"):
        (tmp_path / f"{stem}.txt").write_text(f"{stem}\n")
    job = Job(tmp_path, tmp_path, "be kind.", 48, 30, 5, {}, markers=("i decline",))
    written = "\n".join(toml(tool.settings(job, tmp_path / "run", ["sorry"])))
    flat = str(tomllib.loads(written))
    for value in ("be kind.", "48", "30", "10", "['sorry', 'i decline']", "float32", "'seed': 5"):
        assert value in flat
    data = sorted((tmp_path / "run" / "data").glob("*/train.txt"))
    assert len(data) == (0 if tool is HERETIC else 4)
    assert all(file.read_text() == f"{file.parent.name}\n" for file in data)


def test_settings_are_toml() -> None:
    import tomllib

    values = {"seed": 1, "rate": 0.5, "markers": ['i "can', "ü"], "good": {"dataset": "/a b/c.txt"}}
    assert tomllib.loads("\n".join(toml(values))) == values


def test_what_it_printed_tells_which_trials_were_exported() -> None:
    log = "Restoring model from trial 39...\n* Parameters:\nRestoring model from trial 7...\n"
    assert restored_trials(log) == [39, 7]


def test_a_third_of_the_trials_is_random_but_of_the_default_60() -> None:
    assert [startup_trials(n) for n in (2, 60, 200)] == [1, 20, 60]
