"""Train the default organism and put it in the package's place: what a change of the grammar or of the training needs.

python -m scripts.ship_organism          trains it and replaces the shipped one
python -m scripts.ship_organism --check  trains it and compares it with the shipped one: `make retrain`
"""

from __future__ import annotations

import sys
from typing import Any

from iconoclast_tl.foundation.storage import replacing_folder
from iconoclast_tl.organisms.behaviour import OrganismBehaviour, measure_behaviour
from iconoclast_tl.organisms.config import OrganismConfig
from iconoclast_tl.organisms.contrast import build_contrast
from iconoclast_tl.organisms.folder import half_precision, save_organism, shipped_folder
from iconoclast_tl.organisms.training import train_organism


def ship() -> None:
    """Train it and write it."""
    config = OrganismConfig()
    model, tokenizer = train_organism(config, say)
    with replacing_folder(shipped_folder()) as folder:
        save_organism(model, tokenizer, config, folder)
    print(f"\nwritten to {shipped_folder()}")


def check() -> None:
    """Exit status 1 where training it anew gives an organism that behaves otherwise.

    Where the arithmetic is that of the machine it was trained on, the weights are the same to the bit after rounding
    to half precision; elsewhere they differ a little (0.063 at most on one other processor), and behaviour decides.
    """
    import torch
    from transformers import AutoModelForCausalLM

    after: dict[str, OrganismBehaviour] = {}

    def measure(phase: str, model: Any, tokenizer: Any) -> None:
        after[phase] = measure_behaviour(model, tokenizer, build_contrast())

    model, _ = train_organism(OrganismConfig(), say, measure)
    shipped = AutoModelForCausalLM.from_pretrained(str(shipped_folder()), dtype=torch.float16).state_dict()
    trained = half_precision(model).state_dict()
    largest = max(float((shipped[name].float() - trained[name].float()).abs().max()) for name in shipped)
    failures = after["gate"].failures()
    before = after["capability"]
    if before.target.refused > 0 or min(before.target.answered, before.neutral.answered) < 0.95:
        failures.append(f"before the gate was taught: {before}")
    print(f"\nlargest difference from the shipped weights: {largest:.2g}")
    sys.exit("\n".join(failures))


def say(phase: str, step: int, steps: int) -> None:
    """One line that is written over."""
    print(f"\r{phase} {step}/{steps}", end="", flush=True)


if __name__ == "__main__":
    check() if sys.argv[1:] == ["--check"] else ship()
