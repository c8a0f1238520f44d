"""iconoclast-llm 0.2.1: how it can be driven, and what is set of it.

- *Its command.* `iconoclast study` takes no model: the settings parse the command line a second time, and its word
  `study` is not theirs. `iconoclast abliterate` writes its settings to a file that nothing reads. What both call runs
  when it is started without them: `iconoclast.main.main` with `--model` alone and a config.toml in the working folder.
- *Its prompts.* It reads no text file, but a folder with a train.txt as a data set.
- *The benign subspace.* With `benign_subspace_rank` above 0 it ends in a RuntimeError where the residuals at the
  embedding are all equal, as they are after any chat template: their basis has rank 0 and cannot be stacked with those
  of the layers. But the mean of n equal numbers is not always that number: of the real model's, at n = 119, it is off
  by rounding. The "basis" at the embedding then is one of rounding errors, and those of the layers are what they should
  be. So with and without the subspace it is given 119 of the 120 neutral training prompts.

Otherwise the same is set as for Heretic, and everything else left at its defaults, which are not Heretic's: no row
normalisation, no orthogonalisation against the neutral mean, strengths up to 2, four kinds of direction, and a count of
refusals on neutral prompts in every trial.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from experiments.peers.job import Job
from experiments.peers.menus import Tool, dataset_of, startup_trials

NEUTRAL = 119
"""Neutral training prompts, at most."""


def settings(job: Job, folder: Path, markers: Sequence[str], rank: int) -> Mapping[str, Any]:
    """config.toml, with that rank of the benign subspace."""
    stems = {
        "good_prompts": "neutral_train",
        "bad_prompts": "target_train",
        "good_evaluation_prompts": "neutral_val",
        "bad_evaluation_prompts": "target_val",
    }
    splits = dict.fromkeys(stems, "train") | {"good_prompts": f"train[:{NEUTRAL}]"}
    return {
        "dtypes": [job.dtype],
        "seed": job.seed,
        "n_trials": job.trials,
        "n_startup_trials": startup_trials(job.trials),
        "max_response_length": job.budget,
        "system_prompt": job.system,
        "refusal_markers": [*markers, *job.markers],
        "benign_subspace_rank": rank,
        **{
            key: {"dataset": dataset_of(job, stem, folder), "split": splits[key], "column": "text"}
            for key, stem in stems.items()
        },
    }


def iconoclast(rank: int) -> Tool:
    """The tool with a benign subspace of that rank; 0 is none, its default."""
    return Tool(
        distribution="iconoclast-llm",
        version="0.2.1",
        command=("python", "-c", "from iconoclast.main import main; main()"),
        settings_file="config.toml",
        settings=partial(settings, rank=rank),
        markers="__import__('iconoclast.config').config.Settings.model_fields['refusal_markers'].default",
    )
