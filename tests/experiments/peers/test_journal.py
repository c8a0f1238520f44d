"""Heretic's study from a journal of its shape, written with Optuna trial by trial."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

from experiments.peers.heretic import restored_trials, startup_trials, toml
from experiments.peers.journal import HereticTrial, pareto_list, read_journal

SCORES = [(40, 0.002), (4, 0.02), (4, 0.03), (20, 0.005), (30, 0.006), (40, 0.001)]
"""(refusals, KL) of trials 1 to 6; 3 and 5 are beaten, and so is 1, by 6."""


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    file = tmp_path / "model.jsonl"
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(file)))
    study = optuna.create_study(study_name="heretic", storage=storage, directions=["minimize", "minimize"])
    for index, (refusals, kl) in enumerate(SCORES, start=1):
        trial = study.ask()
        counted = {"index": index, "refusals": refusals, "kl_divergence": kl, "base_refusals": 98, "n_bad_prompts": 100}
        for key, value in counted.items():
            trial.set_user_attr(key, value)
        study.tell(trial, [kl, refusals / 98])
    study.ask()  # one that was cut off
    return file


def test_finished_trials_are_read_and_time_passed(journal: Path) -> None:
    study = read_journal(journal)
    assert [(trial.refusals, trial.kl_first_token) for trial in study.trials] == SCORES
    assert [trial.index for trial in study.trials] == [1, 2, 3, 4, 5, 6]
    assert 0 < study.search_seconds < 60


def test_the_list_is_that_of_the_menu(journal: Path) -> None:
    assert [trial.index for trial in pareto_list(read_journal(journal).trials)] == [2, 4, 6]


def test_of_equal_trials_the_first_stands() -> None:
    same = [HereticTrial(index, 5, 100, 0.1) for index in (3, 1, 2)]
    assert [trial.index for trial in pareto_list(same)] == [1]


def test_an_empty_journal_is_no_study(tmp_path: Path) -> None:
    file = tmp_path / "empty.jsonl"
    file.touch()
    with pytest.raises(ValueError, match="no finished trial"):
        read_journal(file)


def test_settings_are_toml() -> None:
    import tomllib

    values = {"seed": 1, "rate": 0.5, "markers": ['i "can', "ü"], "good": {"dataset": "/a b/c.txt"}}
    assert tomllib.loads("\n".join(toml(values))) == values


def test_what_it_printed_tells_which_trials_were_exported() -> None:
    log = "Restoring model from trial 39...\n* Parameters:\nRestoring model from trial 7...\n"
    assert restored_trials(log) == [39, 7]


def test_a_third_of_the_trials_is_random_but_of_the_default_60() -> None:
    assert [startup_trials(n) for n in (2, 60, 200)] == [1, 20, 60]
