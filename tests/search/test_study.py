"""A search that is stopped, at any moment and in any way, ends as if it had not been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.search import study as study_module
from iconoclast_tl.search.config import SearchConfig
from iconoclast_tl.search.objective import ValScores
from iconoclast_tl.search.pareto import Candidate
from iconoclast_tl.search.study import ended, open_study
from tests.search.dummy import CONFIG, TRIALS, score, search


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[Candidate]:
    return search(tmp_path_factory.mktemp("study") / "study.journal")


def test_a_search_is_a_function_of_its_seed(uninterrupted: list[Candidate], tmp_path: Path) -> None:
    assert search(tmp_path / "again") == uninterrupted
    assert len(uninterrupted) == TRIALS
    assert len({str(c.choices) for c in uninterrupted}) == TRIALS  # no trial repeats another
    assert all(c.proxy_rate == c.scores.behaviour_rate / 2 for c in uninterrupted)
    assert all(c.train_rate == c.scores.behaviour_rate / 4 for c in uninterrupted)


@pytest.mark.parametrize("at", [0, 3, 9])
def test_an_interrupt_inside_a_trial_changes_nothing(uninterrupted: list[Candidate], tmp_path: Path, at: int) -> None:
    asked: list[dict[str, Any]] = []

    def stop(choices: dict[str, Any]) -> ValScores:
        asked.append(choices)
        if len(asked) == at + 1:
            raise KeyboardInterrupt
        return score(choices)

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "journal", stop)
    resumed: list[dict[str, Any]] = []
    found = search(tmp_path / "journal", lambda choices: (resumed.append(choices), score(choices))[1])
    assert found == uninterrupted
    assert resumed[0] == asked[-1]  # the interrupted trial is not wasted: it is asked first
    assert len(resumed) == TRIALS - at  # and no finished one is repeated


def test_kill_9_changes_nothing(uninterrupted: list[Candidate], tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.search.dummy", str(journal)], cwd=Path(__file__).parents[2], env=dict(os.environ)
    )
    deadline = time.monotonic() + 60
    while not (journal.exists() and journal.read_text().count('"state":1') >= 3):
        assert time.monotonic() < deadline, "the search did not start"
        assert process.poll() is None, "the search ended before it was killed"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(ended(open_study(journal)))
    assert 3 <= done < TRIALS
    asked: list[dict[str, Any]] = []
    assert search(journal, lambda choices: (asked.append(choices), score(choices))[1]) == uninterrupted
    assert len(asked) == TRIALS - done


def test_half_a_line_at_the_end_of_the_journal_is_cut(uninterrupted: list[Candidate], tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    search(journal, config=CONFIG.model_copy(update={"n_trials": 6}))
    with journal.open("ab") as file:
        file.write(b'{"op_code":5,"worker_id":"x","tri')
    assert search(journal) == uninterrupted


def test_a_sampler_with_one_seed_for_all_trials_would_repeat_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: Heretic's fault, reproduced."""
    honest = study_module._sampler
    monkeypatch.setattr(study_module, "_sampler", lambda config, seed, number: honest(config, seed, 0))
    found = search(tmp_path / "journal", config=CONFIG.model_copy(update={"n_trials": 4}))
    assert len({str(c.choices) for c in found}) == 1


def test_a_search_can_be_made_longer(uninterrupted: list[Candidate], tmp_path: Path) -> None:
    search(tmp_path / "journal", config=CONFIG.model_copy(update={"n_trials": 7}))
    assert search(tmp_path / "journal") == uninterrupted


def test_a_trial_that_fails_is_recorded_and_the_search_goes_on(tmp_path: Path) -> None:
    calls = 0

    def sometimes(choices: dict[str, Any]) -> ValScores:
        nonlocal calls
        calls += 1
        if calls in (2, 6):
            raise ArithmeticError("this one")
        return score(choices)

    found = search(tmp_path / "journal", sometimes)
    assert len(found) == TRIALS - 2
    assert {c.number for c in found} == set(range(TRIALS)) - {1, 5}
    errors = [t.user_attrs["error"] for t in ended(open_study(tmp_path / "journal")) if t.values is None]
    assert errors == ["ArithmeticError: this one"] * 2
    assert search(tmp_path / "journal", sometimes) == found  # failed trials are not tried again
    assert calls == TRIALS


def test_scores_that_are_not_finite_are_a_failure_like_any_other(tmp_path: Path) -> None:
    def broken(choices: dict[str, Any]) -> ValScores:
        return ValScores(0.0, 0.0, 0.0, float("nan"))

    with pytest.raises(RuntimeError, match="5 trials failed in a row"):
        search(tmp_path / "journal", broken)
    errors = {t.user_attrs["error"] for t in ended(open_study(tmp_path / "journal"))}
    assert errors == {"ArithmeticError: kl_sequence is nan"}


def test_a_damaged_journal_is_the_users_line(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text("not json\nnor this\n")
    with pytest.raises(UserError, match="is damaged"):
        search(tmp_path / "journal")


def test_what_always_fails_ends_the_search(tmp_path: Path) -> None:
    def never(choices: dict[str, Any]) -> ValScores:
        raise ArithmeticError("always")

    with pytest.raises(RuntimeError, match="5 trials failed in a row"):
        search(tmp_path / "journal", never)


def test_the_users_mistake_passes_through(tmp_path: Path) -> None:
    def mistaken(choices: dict[str, Any]) -> ValScores:
        raise UserError("what")

    with pytest.raises(UserError):
        search(tmp_path / "journal", mistaken)


def test_tpe_does_better_than_chance(tmp_path: Path) -> None:
    """The last ten of 40 trials come closer to the optimum than the first ten, which are random."""
    found = search(tmp_path / "journal", config=SearchConfig(n_trials=40, n_startup_trials=10))
    rates = [c.scores.behaviour_rate for c in found]
    assert sum(rates[-10:]) < sum(rates[:10])
