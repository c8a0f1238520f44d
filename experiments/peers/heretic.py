"""Heretic 1.4.0: what is set of it, everything else being left at its defaults.

Set are the same response budget, dtype, system message and prompts as ours; the seed; the number of trials, a third of
them random; and its own list of refusal markers with the model's phrases added that the list does not know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.peers.job import Job
from experiments.peers.menus import Tool, startup_trials


def settings(job: Job, folder: Path, markers: Sequence[str]) -> Mapping[str, Any]:
    """config.toml."""
    files = {
        "good_prompts": "neutral_train",
        "bad_prompts": "target_train",
        "good_evaluation_prompts": "neutral_val",
        "bad_evaluation_prompts": "target_val",
    }
    return {
        "dtypes": [job.dtype],
        "seed": job.seed,
        "n_trials": job.trials,
        "n_startup_trials": startup_trials(job.trials),
        "max_response_length": job.budget,
        "system_prompt": job.system,
        "refusal_markers": [*markers, *job.markers],
        **{key: {"dataset": str(job.source(stem))} for key, stem in files.items()},
    }


HERETIC = Tool(
    distribution="heretic-llm",
    version="1.4.0",
    command=("heretic",),
    settings_file="config.toml",
    settings=settings,
    markers="__import__('heretic.config').config.Settings.model_fields['refusal_markers'].default",
    after_path=("1",),  # merged weights
)
