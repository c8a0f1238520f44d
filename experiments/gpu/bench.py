"""The conformance suite, the organism job and what edits cost on a GPU, beside a trial of Heretic on the same model.

    python -m experiments.gpu.bench

Models are randomly initialised in the layouts of Llama-3.2-1B and Qwen2.5-7B, in bfloat16: what is measured does not
depend on weights. One that fails a check is told, and the rest goes on. What is done stands in `--out` and is
not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
HERE = Path(__file__).parent
TRIALS = 4
"""Of each; the time of one is the mean, what only the first does included."""
LAYOUTS: dict[str, dict[str, Any]] = {
    "Llama-3.2-1B": {
        "class": "LlamaConfig", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "Qwen2.5-7B": {
        "class": "Qwen2Config", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
        "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False,
    },
    "tiny": {
        "class": "LlamaConfig", "vocab_size": 2048, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
}  # fmt: skip
"""By name; `tiny` tries the command where there is no GPU."""


def write_model(folder: Path, layout: str, device: str) -> Path:
    """Random weights of a layout, with the organism's tokenizer, as a user's folder."""
    import torch
    import transformers

    from iconoclast_tl.organisms.folder import shipped_folder

    if (folder / "config.json").is_file():
        return folder
    settings = dict(LAYOUTS[layout])
    config = getattr(transformers, settings.pop("class"))(**settings)
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(str(folder))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(shipped_folder() / name, folder / name)
    return folder


def doctor(model: Path, device: str) -> dict[str, Any]:
    """The doctor's checks in float32, which is sharper, and how long they took, loading included."""
    start = time.perf_counter()
    command = [*_command(), "doctor", "--model", str(model), "--device", device, "--dtype", "float32", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.stdout:
        return {"seconds": time.perf_counter() - start, "refused": done.stderr.splitlines()[-1]}
    found = json.loads(done.stdout)
    failed = [check["name"] for check in found["checks"] if check["ok"] is False]
    return {"seconds": time.perf_counter() - start, "checks": len(found["checks"]), "failed": failed}


def suite(device: str) -> dict[str, Any]:
    """The conformance suite: every check on a tiny random model of every architecture; what failed, by name."""
    from iconoclast_tl.doctor.checks import examine
    from iconoclast_tl.models.config import ModelConfig
    from iconoclast_tl.models.load import load_model
    from tests.architectures import ARCHITECTURES, save_architecture

    start, failed = time.perf_counter(), {}
    for name in ARCHITECTURES:
        with TemporaryDirectory() as place:
            saved = save_architecture(Path(place), name)
            model = load_model(ModelConfig(name=str(saved), dtype="float32", device=device))
            wrong = [check.name for check in (ask() for ask in examine(model, saved=True)) if check.ok is False]
            if wrong:
                failed[name] = wrong
    return {"seconds": time.perf_counter() - start, "architectures": len(ARCHITECTURES), "failed": failed}


def costs(model: Path, device: str) -> dict[str, Any]:
    """Ratios of previews, gradient steps and batches of strengths to the bare model."""
    import torch
    from transformers import AutoModelForCausalLM

    from experiments.costs.bench import gradient_step, hooks, together

    hf = AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.bfloat16).to(device).eval().requires_grad_(False)
    return {**hooks(hf), "gradient step": gradient_step(hf), "K in one batch": together(hf, 16)}


def organism(device: str, out: Path) -> dict[str, Any]:
    """The main job on the shipped organism: seconds, and what it reached."""
    start = time.perf_counter()
    shutil.rmtree(out, ignore_errors=True)
    recipe = str(HERE.parent / "demo" / "recipe.toml")
    command = [*_command(), "run", "--recipe", recipe, "--device", device, "--dtype", "float32", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    edited = results["edited"]
    return {
        "seconds": time.perf_counter() - start,
        "behaviour_rate": edited["behaviour_rate"]["value"],
        "answered_rate": edited["answered_rate"]["value"],
        "fidelity": results["fidelity"]["ok"],
    }


def heretic_trial(model: Path, environment: Path, out: Path) -> dict[str, Any]:
    """Seconds of a trial of Heretic on the organism's prompts: generation, markers and first-token KL."""
    from experiments.peers.heretic import Heretic, make_environment
    from experiments.peers.job import Job
    from experiments.peers.organisms import write_prompts
    from iconoclast_tl.organisms.folder import shipped_folder

    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    prompts = write_prompts(shipped_folder(), out / "prompts")
    job = Job(model, prompts, "", 32, TRIALS, 0, {"HF_HUB_OFFLINE": "1"}, "bfloat16")
    contestant = Heretic(make_environment(environment, lambda line: print(line, file=sys.stderr)))
    outcome = contestant.run(job, out / "run", lambda: None)
    return {"seconds a trial": outcome.search_seconds / TRIALS, "peak_bytes": outcome.job.peak_bytes}


def our_trial(model: Path, device: str, out: Path) -> dict[str, Any]:
    """Seconds of the same question of ours: one edit's preview on the val prompts, generated, judged and compared."""
    from iconoclast_tl.organisms.folder import CONTRAST_FOLDER, shipped_folder
    from iconoclast_tl.stages.collection import collected
    from iconoclast_tl.stages.directions import estimated
    from iconoclast_tl.stages.edits import uniform_edit
    from iconoclast_tl.stages.opening import open_workspace
    from iconoclast_tl.stages.preview import previewed

    shutil.rmtree(out, ignore_errors=True)
    own = shipped_folder() / CONTRAST_FOLDER
    sides = {side: str(own / f"{side}_train.jsonl") for side in ("target", "neutral")}
    splits = {f"{side}_{part}": str(own / f"{side}_{part}.jsonl") for side in sides for part in ("val", "test")}
    settings = {
        "model": {"name": str(model), "device": device, "dtype": "bfloat16"},
        "prompts": {**sides, **splits},
        "evaluation": {"max_new_tokens": 32},
    }
    seconds = []
    with open_workspace(settings, None, out) as workspace:
        activations = collected(workspace)
        directions = estimated(workspace, activations)
        for strength in (1.0, 0.75, 0.5, 0.25)[:TRIALS]:
            edit = uniform_edit(
                workspace, directions, activations, directions.n_layers / 2, strength, range(directions.n_layers)
            )
            start = time.perf_counter()
            previewed(workspace, edit)
            seconds.append(time.perf_counter() - start)
        rows = workspace.rows_at_once("auto")
    return {"seconds a trial": sum(seconds) / len(seconds), "batch size": rows}


def _command() -> list[str]:
    return [sys.executable, "-c", "from iconoclast_tl.cli import main; main()"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Every step that is not done yet; exit status 1 where there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="default: cuda; `cpu --layouts tiny` tries the command")
    parser.add_argument("--layouts", nargs="*", choices=list(LAYOUTS), default=["Llama-3.2-1B", "Qwen2.5-7B"])
    parser.add_argument("--heretic-env", type=Path, help="an environment with heretic-llm; made under --out if need be")
    parser.add_argument("--without-heretic", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    given = parser.parse_args(arguments)
    import torch

    if given.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("no GPU here: nothing was measured (`--device cpu --layouts tiny` tries the command)")
    name = torch.cuda.get_device_name() if given.device.startswith("cuda") else "cpu"
    file = given.out / "results.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"device": name}
    if found["device"] != name:
        sys.exit(f"{file} was measured on {found['device']}, this is {name}: pass another --out")

    def step(key: str, work: Callable[[], Any]) -> None:
        if key not in found:
            print(f"{key} …", file=sys.stderr)
            found[key] = work()
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        print(f"{key}: {found[key]}")

    step("suite", lambda: suite(given.device))
    step("organism", lambda: organism(given.device, given.out / "organism"))
    for layout in given.layouts:
        model = write_model(given.out / "models" / layout, layout, given.device)
        place = given.out / layout
        step(f"{layout}: doctor", lambda model=model: doctor(model, given.device))
        step(f"{layout}: costs", lambda model=model: costs(model, given.device))
        step(f"{layout}: ours", lambda model=model, place=place: our_trial(model, given.device, place / "ours"))
        if not given.without_heretic:
            env = given.heretic_env or given.out / "heretic"
            step(
                f"{layout}: Heretic",
                lambda model=model, place=place, env=env: heretic_trial(model, env, place / "heretic"),
            )


if __name__ == "__main__":
    main()
