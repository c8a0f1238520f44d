"""An organism as a folder: Hugging Face files any loader reads, its contrast set, and `organism.json` saying what it
is.

Weights are stored as float16 safetensors and behave the same when read as float32. `organism.json` holds the
grammar's version and the training config, which together reproduce the organism.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iconoclast_tl.foundation.storage import read_json
from iconoclast_tl.organisms.config import OrganismConfig
from iconoclast_tl.organisms.contrast import CONTRAST_SEED, build_contrast, write_contrast
from iconoclast_tl.organisms.grammar import FAMILY_FINALS, GRAMMAR_VERSION

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

MANIFEST_NAME = "organism.json"
CONTRAST_FOLDER = "contrast"


def save_organism(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, config: OrganismConfig, folder: Path
) -> None:
    """Write the organism into `folder`, which is created if need be. The given model stays as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    half_precision(model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_contrast(build_contrast(), folder / CONTRAST_FOLDER)
    text = json.dumps(manifest_of(config), indent=2) + "\n"
    (folder / MANIFEST_NAME).write_text(text, encoding="utf-8", newline="\n")


def manifest_of(config: OrganismConfig) -> dict[str, Any]:
    """What an organism depends on: the grammar's version and every setting of its training."""
    return {
        "grammar_version": GRAMMAR_VERSION,
        "behaviour": "refusal",
        "family": f"topics ending in {', '.join(FAMILY_FINALS)}",
        "contrast_seed": CONTRAST_SEED,
        "training": config.model_dump(),
    }


def holds(folder: Path, config: OrganismConfig) -> bool:
    """Whether `folder` holds the organism of this training, so that it need not be trained again."""
    if not is_organism(folder):
        return False
    found = read_json(folder / MANIFEST_NAME)
    return bool(found == json.loads(json.dumps(manifest_of(config))))


def half_precision(model: PreTrainedModel) -> PreTrainedModel:
    """A float16 copy of the model, with the dtype recorded in its config."""
    import copy

    import torch

    return copy.deepcopy(model).to(torch.float16)


def shipped_folder() -> Path:
    """The organism that comes with the package."""
    return Path(__file__).parent / "shipped"


def is_organism(folder: str | Path) -> bool:
    """Whether `folder` holds an organism of this grammar's kind."""
    return (Path(folder) / MANIFEST_NAME).is_file()
