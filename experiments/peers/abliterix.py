"""Abliterix 1.12.2: what is set of it, everything else being left at its defaults (LoRA edits, `full` row norms).

It reads no text file, but a folder with a train.txt as a data set. In every trial it also generates answers to the
neutral prompts, for their length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.peers.job import Job
from experiments.peers.menus import Tool, dataset_of, startup_trials


def settings(job: Job, folder: Path, markers: Sequence[str]) -> Mapping[str, Any]:
    """abliterix.toml."""
    stems = {
        "benign_prompts": "neutral_train",
        "target_prompts": "target_train",
        "benign_eval_prompts": "neutral_val",
        "target_eval_prompts": "target_val",
    }
    return {
        "seed": job.seed,
        "system_prompt": job.system,
        "model": {"dtype_fallback_order": [job.dtype]},
        "inference": {"max_gen_tokens": job.budget},
        "optimization": {"num_trials": job.trials, "num_warmup_trials": startup_trials(job.trials)},
        "detection": {"compliance_markers": [*markers, *job.markers]},
        **{
            key: {"dataset": dataset_of(job, stem, folder), "split": "train", "column": "text"}
            for key, stem in stems.items()
        },
    }


ABLITERIX = Tool(
    distribution="abliterix",
    version="1.12.2",
    command=("abliterix",),
    settings_file="abliterix.toml",
    settings=settings,
    markers="__import__('abliterix.settings').settings.DetectionConfig().compliance_markers",
)
