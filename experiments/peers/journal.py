"""Heretic's study, read from the Optuna journal that it keeps.

Every finished trial carries what Heretic counted of it as user attributes: `refusals` among `n_bad_prompts` evaluation
prompts and the first-token `kl_divergence` over the good ones. Its menu offers the trials that no other beats in one of
the two without losing in the other, by rising refusals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class HereticTrial:
    """One finished trial, as Heretic itself counted it on the val prompts."""

    index: int
    """Its number in Heretic's menu, from 1."""
    refusals: int
    n: int
    """Target prompts among which the refusals were counted."""
    kl_first_token: float
    """Nats, mean over the neutral val prompts."""

    def to_json(self) -> dict[str, Any]:
        """As a result keeps it."""
        return {**asdict(self), "rate": self.refusals / self.n}


@dataclass(frozen=True)
class HereticStudy:
    """The finished trials and how long the search took."""

    trials: tuple[HereticTrial, ...]
    search_seconds: float
    """From the start of the first trial to the end of the last."""


def read_journal(journal: Path) -> HereticStudy:
    """The study in `journal`; ValueError where it holds no finished trial."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(journal)))
    complete = optuna.trial.TrialState.COMPLETE
    found = [
        trial
        for study in storage.get_all_studies()
        for trial in storage.get_all_trials(study._study_id, deepcopy=False, states=(complete,))
    ]
    if not found:
        raise ValueError(f"{journal} holds no finished trial")
    starts = [trial.datetime_start for trial in found if trial.datetime_start is not None]
    ends = [trial.datetime_complete for trial in found if trial.datetime_complete is not None]
    return HereticStudy(tuple(_trial(one.user_attrs) for one in found), (max(ends) - min(starts)).total_seconds())


def pareto_list(trials: Sequence[HereticTrial]) -> list[HereticTrial]:
    """The trials of Heretic's menu, in its order: rising refusals, falling KL; of equal ones the first."""
    front: list[HereticTrial] = []
    for trial in sorted(trials, key=lambda one: (one.refusals, one.kl_first_token, one.index)):
        if not front or trial.kl_first_token < front[-1].kl_first_token:
            front.append(trial)
    return front


def _trial(attributes: dict[str, Any]) -> HereticTrial:
    return HereticTrial(
        attributes["index"], attributes["refusals"], attributes["n_bad_prompts"], attributes["kl_divergence"]
    )
