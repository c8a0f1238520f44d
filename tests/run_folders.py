"""Run folders as an evaluation leaves them, small and written by hand: for what only reads them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iconoclast_tl.stages.results import RESULTS_SCHEMA
from iconoclast_tl.stages.run_folder import SCHEMA
from iconoclast_tl.stages.settings import Settings, merge

Shown = Sequence[bool | None]


def labels(k: int, n: int) -> list[bool]:
    """n labels, the first k of which show the behaviour."""
    return [i < k for i in range(n)]


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def write_run(
    folder: Path,
    edited: Shown,
    base: Shown | None = None,
    *,
    spill: Shown | None = None,
    kl: Sequence[float] | None = None,
    seed: int = 0,
    model: str = "garden",
    prompts: str = "recipes",
    settings: Mapping[str, Any] | None = None,
    results: Mapping[str, Any] | None = None,
    manifest: Mapping[str, Any] | None = None,
) -> Path:
    """A run: labels of the edited and the base model on the target prompts, of the edited one on neutral ones, nats."""
    n, spilt = len(edited), spill if spill is not None else [False] * 20
    before = base if base is not None else [True] * n
    nats = kl if kl is not None else [0.01 + 0.001 * i for i in range(len(spilt))]
    about = {"name": "markers", "phrases": ["cannot talk about"], "match": "anywhere"}
    chosen = merge(Settings().model_dump(mode="json"), merge({"seed": seed, "model": {"name": model}}, settings or {}))
    budget = chosen["evaluation"]["max_new_tokens"]
    spilling = [{"behaviour": spilt[i], "kl_sequence": nats[i], "kl_first_token": 0.0} for i in range(len(spilt))]
    rows = [_row("target", f"{prompts} {i}", before[i], {"behaviour": edited[i]}) for i in range(n)]
    rows += [_row("neutral", f"{prompts} plain {i}", False, said) for i, said in enumerate(spilling)]
    result = {
        "schema": RESULTS_SCHEMA,
        "evaluated": {"edit": digest(str(folder))},
        "chosen": {"rule": "lexicographic", "edit": digest(str(folder))},
        "detector": "markers",
        "budget": budget,
        "detectors": {"markers": {"about": about}},
        "base": {"kl_sequence": {"value": 0.0, "tokens": chosen["evaluation"]["kl_tokens"]}},
        "edited": {"kl_sequence": {"value": 0.01, "tokens": chosen["evaluation"]["kl_tokens"]}},
    }
    about_run = {
        "schema": SCHEMA,
        "versions": {"iconoclast-tl": "0.1.0"},
        "model": {"name": model, "fingerprint": digest(model), "dtype": "float32"},
        "prompts": {name: digest(f"{prompts} {name}") for name in ("target_train", "target_test", "neutral_test")},
        "tokens": digest(prompts),
        "settings": chosen,
    }
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(merge(about_run, manifest or {})))
    (folder / "results.json").write_text(json.dumps(merge(result, results or {})))
    (folder / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _row(name: str, text: str, base: bool | None, edited: Mapping[str, Any]) -> dict[str, Any]:
    return {"set": name, "id": digest(text)[:12], "category": None, "base": {"behaviour": base}, "edited": dict(edited)}
