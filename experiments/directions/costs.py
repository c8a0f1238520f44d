"""What estimating directions costs on a model of 8 billion parameters: time and peak memory of every estimator.

300 + 300 prompts × 33 residual points × d_model 4096 of random numbers, from a file as a run keeps them. Each estimator
in a process of its own, and all of them in one, which share what they can.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from experiments.costs.bench import own_peak

PROMPTS, POINTS, D_MODEL = 300, 33, 4096


def write(path: Path, prompts: int = PROMPTS, points: int = POINTS, d_model: int = D_MODEL) -> None:
    """Random residuals in which target prompts lie apart along the first coordinate."""
    import torch

    from iconoclast_tl.activations.store import Activations, save_activations

    generator = torch.Generator().manual_seed(0)
    target, neutral = (torch.randn(prompts, points, d_model, generator=generator) for _ in range(2))
    target[..., 0] += 8
    save_activations(
        path,
        Activations(
            target_train=target,
            neutral_train=neutral,
            target_val=target[:2],
            neutral_val=neutral[:2],
            neutral_writes={},
        ),
        "random",
    )


def estimate(path: Path, names: Sequence[str]) -> tuple[float, float]:
    """Seconds, and the peak of this process in GB."""
    import time

    import torch

    from iconoclast_tl.activations.store import load_activations
    from iconoclast_tl.directions.config import DirectionConfig
    from iconoclast_tl.directions.estimate import estimate_all

    kept = load_activations(path, "random")
    assert kept is not None
    residuals = kept.at()
    shown = torch.arange(len(residuals.target_train) + len(residuals.neutral_train)) < len(residuals.target_train)
    configs = {name: DirectionConfig.model_validate({"estimator": name}) for name in names}
    start = time.perf_counter()
    found = estimate_all(residuals.target_train, residuals.neutral_train, configs, shown)
    seconds = time.perf_counter() - start
    assert all(bool(one.vectors.any()) for one in found.values())
    return seconds, own_peak() / 1000


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line for every estimator, and one for all together."""
    from iconoclast_tl.directions.estimators.registry import ESTIMATORS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", nargs=2, metavar=("FILE", "NAMES"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.of:
        seconds, peak = estimate(Path(options.of[0]), options.of[1].split(","))
        print(f"{seconds:.1f} s, {peak:.2f} GB")
        return
    print(f"{PROMPTS} + {PROMPTS} prompts × {POINTS} residual points × d_model {D_MODEL}; time, peak of the process")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "activations.safetensors"
        write(file)
        for title, names in [(name, [name]) for name in ESTIMATORS] + [("all together", list(ESTIMATORS))]:
            command = [sys.executable, "-m", "experiments.directions.costs", "--of", str(file), ",".join(names)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            print(f"{title:<18} {done.stdout.strip()}", flush=True)


if __name__ == "__main__":
    main()
