"""The study of Heretic or of a tool made from it, read from the Optuna journal that it keeps.

Every finished trial carries what the tool counted of it as user attributes: `index`, its number in the menu, `refusals`
among the target val prompts, and the first-token `kl_divergence` over the neutral ones.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class PeerTrial:
    """One finished trial, as the tool itself counted it on the val prompts."""

    index: int
    """Its number in the menu, from 1."""
    refusals: int
    n: int
    """Target prompts among which the refusals were counted."""
    kl_first_token: float
    """Nats, mean over the neutral val prompts."""

    def to_json(self) -> dict[str, Any]:
        """As a result keeps it."""
        return {**asdict(self), "rate": self.refusals / self.n}


@dataclass(frozen=True)
class PeerStudy:
    """The finished trials and how long the search took."""

    trials: tuple[PeerTrial, ...]
    start: float
    """When the first trial began, in seconds since the epoch."""
    end: float
    """When the last one ended."""

    @property
    def search_seconds(self) -> float:
        """From the start of the first trial to the end of the last."""
        return self.end - self.start

    def trial(self, index: int) -> PeerTrial:
        """The trial of that number."""
        (found,) = (one for one in self.trials if one.index == index)
        return found


def read_journal(journal: Path, n: int) -> PeerStudy:
    """The study in `journal` of refusals among `n` prompts; ValueError where it holds no finished trial."""
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
    return PeerStudy(tuple(_trial(one.user_attrs, n) for one in found), min(starts).timestamp(), max(ends).timestamp())


def _trial(attributes: dict[str, Any], n: int) -> PeerTrial:
    return PeerTrial(attributes["index"], attributes["refusals"], n, attributes["kl_divergence"])
