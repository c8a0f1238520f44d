"""How much memory `iconoclast-tl merge` needs beside the largest file of a model, and beside the model whole."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.costs.bench import own_peak

MEGABYTE = 1e6
LAYERS_PER_FILE = 7
"""Of 122 MB each, so that a file has 0.85 GB."""


def configuration(n_layers: int) -> Any:
    """Llama with the widths of Llama-3.2-1B."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=n_layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )


def write_model(folder: Path, n_layers: int) -> int:
    """Random weights in bfloat16, a file at a time; returns the bytes of the largest file."""
    from safetensors.torch import save_file

    from iconoclast_tl.organisms.folder import shipped_folder

    folder.mkdir(parents=True)
    configuration(n_layers).save_pretrained(str(folder))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((shipped_folder() / name).read_bytes())
    index = {}
    for number, tensors in enumerate(_files(n_layers)):
        name = f"model-{number:05d}.safetensors"
        save_file(tensors, folder / name, {"format": "pt"})
        index |= dict.fromkeys(tensors, name)
    about = {"metadata": {}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(about), encoding="utf-8")
    return max(file.stat().st_size for file in folder.glob("*.safetensors"))


def _files(n_layers: int) -> Iterator[dict[str, Any]]:
    import torch
    from accelerate import init_empty_weights
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    with init_empty_weights():
        shapes = {name: p.shape for name, p in LlamaForCausalLM(configuration(n_layers)).named_parameters()}
    groups: dict[int, list[str]] = {}
    for name in shapes:
        parts = name.split(".")
        groups.setdefault(int(parts[2]) // LAYERS_PER_FILE if "layers" in parts else -1, []).append(name)
    for names in groups.values():
        yield {name: torch.randn(shapes[name], dtype=torch.bfloat16) * 0.02 for name in names}


def write_run(folder: Path, model: Path, n_layers: int) -> None:
    """A run folder whose search chose λ = 1 at every writer."""
    import torch

    from iconoclast_tl.directions.directions import Directions, save_directions
    from iconoclast_tl.directions.geometry import normalize
    from iconoclast_tl.edits.config import EditConfig
    from iconoclast_tl.edits.edit import make_edit
    from iconoclast_tl.edits.store import save_edit
    from iconoclast_tl.foundation.storage import write_json
    from iconoclast_tl.models.config import ModelConfig
    from iconoclast_tl.stages.manifest import make_manifest
    from iconoclast_tl.stages.run_folder import RunFolder
    from iconoclast_tl.stages.settings import Settings

    run = RunFolder(folder)
    vectors = normalize(torch.randn(n_layers + 1, 2048, generator=torch.Generator().manual_seed(0)))
    edit = make_edit(
        vectors[None, 1:], {"attn_out": torch.ones(n_layers), "mlp_out": torch.ones(n_layers)}, EditConfig()
    )
    settings = Settings(model=ModelConfig(name=str(model))).model_dump(mode="json")
    about = {"name": str(model), "n_layers": n_layers, "d_model": 2048}
    counts = {split: {"target": 0, "neutral": 0} for split in ("train", "val", "test")}
    write_json(run.manifest, make_manifest(settings, about, {}, counts, ""))
    save_directions(run.directions, Directions.single(vectors, torch.ones(n_layers + 1), {}))
    save_edit(run.path, edit, {"trial": 0})


def merge(run: Path) -> None:
    """The command itself, in this process."""
    from iconoclast_tl.cli import app

    app(["merge", "--out", str(run)], standalone_mode=False)


def load(model: Path) -> None:
    """The model whole, in bfloat16, and one token through it: until then its files are mapped and not read."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.bfloat16)(torch.ones(1, 1, dtype=torch.long))


def libraries() -> None:
    """What the command imports, and nothing done with it."""
    import peft
    import torch
    import transformers

    _ = (peft.LoraConfig, torch.zeros(1), transformers.AutoModelForCausalLM)


def in_a_process(*arguments: str) -> tuple[float, float]:
    """(largest megabytes, seconds) of a fresh process that does one thing."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "experiments.memory.bench", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1]), time.perf_counter() - start


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table; exit status 1 where the merge needs more than it may."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=28, help="of 122 MB each (default 28: a model of 3.7 GB)")
    parser.add_argument("--merge", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--libraries", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.merge or given.load or given.libraries:
        if given.merge:
            merge(given.merge)
        elif given.load:
            load(given.load)
        else:
            libraries()
        print(own_peak() * 1024 * 1024 / MEGABYTE)
        return
    with tempfile.TemporaryDirectory() as place:
        model, run = Path(place) / "model", Path(place) / "run"
        largest = write_model(model, given.layers) / MEGABYTE
        size = sum(file.stat().st_size for file in model.glob("*.safetensors")) / MEGABYTE
        write_run(run, model, given.layers)
        merged, seconds = in_a_process("--merge", str(run))
        whole, _ = in_a_process("--load", str(model))
    imports, _ = in_a_process("--libraries")
    limit = largest + 1000
    print(f"model {size:.0f} MB in files of at most {largest:.0f} MB, {2 * given.layers} matrices edited")
    print(
        f"peak of the process, MB: merge {merged:.0f} (limit {limit:.0f}), its libraries alone {imports:.0f}, ", end=""
    )
    print(f"the model loaded whole {whole:.0f}")
    print(f"merge took {seconds:.0f} s")
    if merged > limit:
        sys.exit(1)


if __name__ == "__main__":
    main()
