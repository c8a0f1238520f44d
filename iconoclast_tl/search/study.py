"""The study: Optuna's TPE over any space, journalled, resumable at any moment.

Trials are started and ended in batches, so that several edits run in one batch of the model. Every trial's
sampler is seeded by (seed, the trial's number), and takes those of its batch that have no result yet for bad ones
(constant liar). Together with the journal that makes a trial a function of its predecessors alone: a search that was
stopped (also by kill -9) goes on exactly as if it had not been, and trials that it left without a result are scored
first. Heretic's sampler restarts its random numbers instead and repeats trials.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.progress import Track, silent
from iconoclast_tl.search.config import SearchConfig
from iconoclast_tl.search.objective import ValScores
from iconoclast_tl.search.pareto import Candidate
from iconoclast_tl.search.seeds import derived_seed
from iconoclast_tl.search.space import Choices, Trial
from iconoclast_tl.search.spec import EditSpec

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)
STUDY = "kernel"
INTERRUPTED = "interrupted"
MAX_FAILURES_IN_A_ROW = 5
SPEC, PROXY_RATE, TRAIN_RATE = "spec", "proxy_rate", "train_rate"
"""Names under which a trial keeps what is not among its own choices."""


@dataclass(frozen=True)
class TrialOutcome:
    """What came of a trial."""

    spec: EditSpec
    """Of its edit."""
    scores: ValScores
    proxy_rate: float | None = None
    """What was taken for the behaviour rate before it was generated, if anything was."""
    train_rate: float | None = None
    """The behaviour rate of what was generated from train prompts, if anything was."""


Suggest = Callable[[Trial], Choices]
ScoreTrials = Callable[[Sequence[Choices]], Sequence[TrialOutcome]]


def run_study(
    journal: Path,
    config: SearchConfig,
    seed: int,
    suggest: Suggest,
    score: ScoreTrials,
    track: Track = silent,
    start: Sequence[Mapping[str, Any]] = (),
) -> list[Candidate]:
    """Bring the study in `journal` to `config.trials` ended trials and return those that succeeded.

    suggest: asks a trial for its choices, always for all of them. score: what came of a batch of choices. start: the
    choices of the first trials, which are given instead of drawn.

    A trial that raises is recorded as failed with its error, and the search goes on; five in a row end it, since then
    the fault is not the trial's. `UserError`s and interrupts pass through.
    """
    study = open_study(journal)
    done = len(ended(study))
    batches, failures_in_a_row = _batches(study, config, seed, suggest, done, start), 0
    told = _told(batches, study, config, score)
    for error in track(told, f"search ({done} done before)" if done else "search", max(config.trials - done, 0)):
        failures_in_a_row = 0 if error is None else failures_in_a_row + 1
        if failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            raise RuntimeError(f"{failures_in_a_row} trials failed in a row; the last one above") from error
    return candidates(study)


AskedTrial = tuple["optuna.Trial", Choices]


def _batches(
    study: optuna.Study,
    config: SearchConfig,
    seed: int,
    suggest: Suggest,
    done: int,
    start: Sequence[Mapping[str, Any]],
) -> Iterator[list[AskedTrial]]:
    """Batches of trials with their choices; first those that an interrupted batch had started.

    Which of them are given depends on a trial's number alone. Optuna's queue of trials would have to be filled once and
    only once, which a process that is killed while it fills it cannot promise.
    """
    left = _left_running(study, suggest)
    while done < config.trials:
        end = min((done // config.batch_trials + 1) * config.batch_trials, config.trials)
        batch = []
        for number in range(done, end):
            study.sampler = _sampler(config, seed, number)
            if number < len(start):
                study.sampler = _giving(start[number], study.sampler)
            trial = left.pop(0) if left else study.ask()
            batch.append((trial, suggest(trial)))
        yield batch
        done = end


def _left_running(study: optuna.Study, suggest: Suggest) -> list[optuna.Trial]:
    """The trials that a stopped process had started and not ended, in order.

    One that was stopped amid its choices is closed: drawing only those that are missing would draw other ones.
    """
    from optuna.trial import FixedTrial, Trial, TrialState

    left = []
    for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        trial = Trial(study, frozen._trial_id)
        try:
            suggest(FixedTrial(frozen.params))
        except ValueError:
            _fail(study, trial, INTERRUPTED, INTERRUPTED)
            continue
        left.append(trial)
    return left


def _told(
    batches: Iterable[list[AskedTrial]], study: optuna.Study, config: SearchConfig, score: ScoreTrials
) -> Iterator[Exception | None]:
    """Score and end every trial, in the order they were started; yields each one's error, or None."""
    for batch in batches:
        for (trial, _), outcome in zip(batch, _scored([choices for _, choices in batch], score), strict=True):
            if isinstance(outcome, Exception):
                reason = f"{type(outcome).__name__}: {outcome}"
                _fail(study, trial, reason)
                log.warning("trial %d failed and is left out: %s", trial.number, reason)
                yield outcome
                continue
            for name, value in outcome.scores.to_json().items():
                trial.set_user_attr(name, value)
            trial.set_user_attr(SPEC, outcome.spec.to_json())
            trial.set_user_attr(PROXY_RATE, outcome.proxy_rate)
            trial.set_user_attr(TRAIN_RATE, outcome.train_rate)
            study.tell(trial, [outcome.scores.shortfall(config.goal), outcome.scores.kl(config.kl)])
            yield None


def _scored(batch: Sequence[Choices], score: ScoreTrials) -> list[TrialOutcome | Exception]:
    """What came, or the error, of every trial; where the batch fails, each is tried alone to find which one it is."""
    try:
        found = score(batch)
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:
        if len(batch) == 1:
            return [error]
        return [result for one in batch for result in _scored([one], score)]
    return [_finite(outcome) for outcome in found]


def _finite(outcome: TrialOutcome) -> TrialOutcome | ArithmeticError:
    bad = [f"{name} is {value}" for name, value in outcome.scores.to_json().items() if not math.isfinite(value)]
    return ArithmeticError(bad[0]) if bad else outcome


def open_study(journal: Path) -> optuna.Study:
    """Open or create the journalled study; a line that a kill cut short is removed first."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    _cut_partial_line(journal)
    backend = JournalFileBackend(str(journal), lock_obj=_OsLock(journal))  # type: ignore[arg-type]  # by duck
    try:
        storage = optuna.storages.JournalStorage(backend)
        return optuna.create_study(
            study_name=STUDY, storage=storage, directions=["minimize", "minimize"], load_if_exists=True
        )
    except (ValueError, KeyError) as error:
        raise UserError(
            f"the journal {journal} is damaged", got=error, mend="remove it to search again, or pass another --out"
        ) from error


def ended(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Trials that ended with a result or failed by themselves, without those that an interruption cut off."""
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
    return [trial for trial in trials if INTERRUPTED not in trial.user_attrs]


def candidates(study: optuna.Study) -> list[Candidate]:
    """The trials that succeeded, numbered as they ended."""
    found = []
    for number, trial in enumerate(ended(study)):
        if trial.values is not None:
            scores = ValScores(**{name: trial.user_attrs[name] for name in ValScores.__dataclass_fields__})
            spec = EditSpec.from_json(trial.user_attrs[SPEC])
            proxy_rate, train_rate = (trial.user_attrs.get(name) for name in (PROXY_RATE, TRAIN_RATE))
            found.append(
                Candidate(
                    number=number,
                    spec=spec,
                    scores=scores,
                    proxy_rate=proxy_rate,
                    train_rate=train_rate,
                    choices=dict(trial.params),
                )
            )
    return found


def _sampler(config: SearchConfig, seed: int, number: int) -> optuna.samplers.BaseSampler:
    import warnings

    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", optuna.exceptions.ExperimentalWarning
        )  # `multivariate` and the liar have been so for years
        return optuna.samplers.TPESampler(
            multivariate=True,
            n_startup_trials=config.startup_trials,
            n_ei_candidates=config.n_ei_candidates,
            constant_liar=config.batch_trials > 1,
            seed=derived_seed(seed, number),
        )


def _giving(choices: Mapping[str, Any], sampler: optuna.samplers.BaseSampler) -> optuna.samplers.BaseSampler:
    """A sampler that answers with these choices."""
    import warnings

    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.PartialFixedSampler(dict(choices), sampler)


def _fail(study: optuna.Study, trial: optuna.Trial, reason: str, attribute: str = "error") -> None:
    from optuna.trial import TrialState

    trial.set_user_attr(attribute, reason)
    study.tell(trial, state=TrialState.FAIL)


def _cut_partial_line(journal: Path) -> None:
    """A process killed while it appended leaves half a line, on which the next append would run on."""
    if not journal.exists():
        return
    content = journal.read_bytes()
    if content and not content.endswith(b"\n"):
        with journal.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


class _OsLock:
    """A journal lock that the operating system releases when its holder dies; Optuna's own would stall the next run."""

    def __init__(self, journal: Path) -> None:
        from filelock import FileLock

        self._lock = FileLock(f"{journal}.lock")

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._lock.acquire()
        return True

    def release(self) -> None:
        """Let go of the lock."""
        self._lock.release()
