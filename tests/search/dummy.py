"""A search whose objective is arithmetic: choices in, scores out, no model. Run as a script, to be killed.

As a script: the journal, then `warm` where the first trials are given.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iconoclast_tl.edits.config import EditConfig
from iconoclast_tl.search.config import SearchConfig
from iconoclast_tl.search.objective import ValScores
from iconoclast_tl.search.pareto import Candidate
from iconoclast_tl.search.space import Choices, spec_of, suggest
from iconoclast_tl.search.study import TrialOutcome, run_study
from iconoclast_tl.search.warm_start import PROFILES, first_trials

TRIALS, LAYERS = 16, 6
CONFIG = SearchConfig(n_trials=TRIALS, n_startup_trials=5)
START = [
    trial for family in ("llama", "gemma") for trial in first_trials(PROFILES[family], CONFIG.space, "suppress", LAYERS)
]


def score(choices: Choices) -> ValScores:
    rate = abs(choices["attn_out.max_weight"] - 1.1)
    kl = choices["mlp_out.max_weight"] ** 2 + choices["direction_point"] - 1
    return ValScores(rate, 0.0, kl, kl)


def search(
    journal: Path,
    objective: Any = score,
    config: SearchConfig = CONFIG,
    start: Sequence[Mapping[str, Any]] = (),
) -> list[Candidate]:
    def together(batch: Sequence[Choices]) -> list[TrialOutcome]:
        scores = [objective(choices) for choices in batch]
        specs = [spec_of(choices, EditConfig()) for choices in batch]
        return [
            TrialOutcome(p, s, s.behaviour_rate / 2, s.behaviour_rate / 4) for p, s in zip(specs, scores, strict=True)
        ]

    return run_study(
        journal, config, 3, lambda trial: suggest(trial, config.space, n_layers=LAYERS), together, start=start
    )


if __name__ == "__main__":

    def slowly(choices: Choices) -> ValScores:
        time.sleep(0.15)
        return score(choices)

    search(Path(sys.argv[1]), slowly, start=START if sys.argv[2:] == ["warm"] else ())
