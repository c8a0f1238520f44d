"""What a preview, a batch of candidates and a gradient step cost beside the bare model."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

BATCH, POSITIONS, NEW_TOKENS, REPETITIONS = 16, 64, 32, 7
SIZES = ((128, 6), (256, 12), (512, 12))
"""(d_model, layers) of the random Llamas."""
CANDIDATES = (1, 2, 4, 8)
MEGABYTE = 1024.0
"""Linux counts in kilobytes."""


def build(d_model: int, n_layers: int) -> Any:
    """A random Llama with grouped-query attention, in float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=d_model,
        intermediate_size=d_model * 5 // 2,
        num_hidden_layers=n_layers,
        num_attention_heads=d_model // 32,
        num_key_value_heads=d_model // 64,
        eos_token_id=None,
        pad_token_id=0,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return LlamaForCausalLM(config).eval().requires_grad_(False).to(device)


def random_updates(hf: Any, strengths: Any) -> Any:
    """An edit at every writer; `strengths` has one row a candidate."""
    import torch

    from iconoclast_tl.architecture.writers import require_writers
    from iconoclast_tl.edits.updates import SiteUpdate, Updates

    v = torch.nn.functional.normalize(torch.randn(1, 1, hf.config.hidden_size), dim=-1)
    sites = require_writers(hf)
    return Updates(
        {site: SiteUpdate(reads=v, writes=v, constants=None) for site in sites}, dict.fromkeys(sites, strengths)
    )


def alternating(*runs: Callable[[], Any], repetitions: int | None = None) -> list[float]:
    """Median seconds of each, run in turn so that the machine's moods meet all of them."""
    import torch

    times: list[list[float]] = [[] for _ in runs]
    for repetition in range((repetitions or REPETITIONS) + 1):
        for number, run in enumerate(runs):
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repetition:  # the first warms up
                times[number].append(time.perf_counter() - start)
    return [median(one) for one in times]


def hooks(hf: Any) -> dict[str, float]:
    """Ratios of a hooked forward and a hooked generation to the bare model's."""
    import torch

    from iconoclast_tl.architecture.hook_points import hf_sites
    from iconoclast_tl.edits.hooks import hooked

    ids = torch.randint(1, 2048, (BATCH, POSITIONS), device=hf.device)
    updates, sites = random_updates(hf, torch.ones(1, 1)), hf_sites(hf)

    @torch.no_grad()
    def forward() -> None:
        hf(ids, use_cache=False)

    @torch.no_grad()
    def generate() -> None:
        hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False)

    def under_hooks(run: Callable[[], None]) -> Callable[[], None]:
        def hooked_run() -> None:
            with hooked(updates, sites):
                run()

        return hooked_run

    bare, edited = alternating(forward, under_hooks(forward))
    bare_said, edited_said = alternating(generate, under_hooks(generate))
    return {"forward": edited / bare, "generation": edited_said / bare_said}


def together(hf: Any, positions: int) -> dict[int, float]:
    """K → seconds of one batch of K candidates over seconds of K runs, 4 prompts each."""
    import torch

    from iconoclast_tl.architecture.hook_points import hf_sites
    from iconoclast_tl.edits.hooks import hooked

    prompts = 4
    ids, sites = torch.randint(1, 2048, (prompts, positions), device=hf.device), hf_sites(hf)
    ratios = {}
    for k in CANDIDATES:
        one, many = random_updates(hf, torch.ones(1, 1)), random_updates(hf, torch.rand(k, 1))
        rows, repeated = torch.arange(k, device=hf.device).repeat_interleave(prompts), ids.repeat(k, 1)

        @torch.no_grad()
        def separate(k: int = k, one: Any = one) -> None:
            for _ in range(k):
                with hooked(one, sites):
                    hf(ids, use_cache=False)

        @torch.no_grad()
        def batched(many: Any = many, rows: Any = rows, repeated: Any = repeated) -> None:
            with hooked(many, sites) as assigned:
                assigned.candidates = rows
                hf(repeated, use_cache=False)

        alone, at_once = alternating(separate, batched)
        ratios[k] = at_once / alone
    return ratios


def gradient_step(hf: Any) -> float:
    """Ratio of a forward pass and its backward pass through the strengths to the bare forward."""
    import torch

    from iconoclast_tl.architecture.hook_points import hf_sites
    from iconoclast_tl.edits.hooks import hooked

    ids, sites = torch.randint(1, 2048, (BATCH, POSITIONS), device=hf.device), hf_sites(hf)
    strengths = torch.ones(1, 1, requires_grad=True)

    @torch.no_grad()
    def forward() -> None:
        hf(ids, use_cache=False).logits.float().log_softmax(-1)

    def step() -> None:
        with hooked(random_updates(hf, strengths), sites):
            loss = hf(ids, use_cache=False).logits.float().log_softmax(-1)[..., 7].mean()
        torch.autograd.grad(loss, strengths)

    bare, with_gradient = alternating(forward, step)
    return with_gradient / bare


def own_peak() -> float:
    """Megabytes that this program held at most; `ru_maxrss` would count what its parent held at the fork, too."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM"))
    return int(line.split()[1]) / MEGABYTE


def peak(kind: str, d_model: int, n_layers: int) -> float:
    """Largest megabytes of this process, which makes a bare evaluation or a gradient step and nothing else."""
    import torch

    from iconoclast_tl.architecture.hook_points import hf_sites
    from iconoclast_tl.edits.hooks import hooked

    hf = build(d_model, n_layers)
    ids = torch.randint(1, 2048, (BATCH, POSITIONS), device=hf.device)
    if kind == "bare":
        with torch.no_grad():
            hf(ids, use_cache=False).logits.log_softmax(-1)
    else:
        strengths = torch.ones(1, 1, requires_grad=True)
        for half in ids.chunk(2):  # as in a search: target prompts are differentiated first, then neutral ones
            with hooked(random_updates(hf, strengths), hf_sites(hf)):
                loss = hf(half, use_cache=False).logits.log_softmax(-1)[..., 7].mean()
            torch.autograd.backward(loss)
    return own_peak()


def organism_peak(kind: str) -> float:
    """Largest megabytes of this process, which asks the organism all that a search asks of the base, or searches.

    Both collect activations and estimate directions before; batches are those of the settings.
    """
    import tempfile

    from iconoclast_tl.stages.collection import collected
    from iconoclast_tl.stages.directions import estimated
    from iconoclast_tl.stages.opening import open_workspace
    from iconoclast_tl.stages.search import searched

    with tempfile.TemporaryDirectory() as folder, open_workspace({}, None, Path(folder) / "run") as workspace:
        activations = collected(workspace)
        directions = estimated(workspace, activations)
        if kind == "search":
            searched(workspace, directions, activations)
        else:
            for base in (workspace.val, workspace.asked("train", workspace.settings.search.gradient.prompts)):
                _ = base.shows, base.continuations
    return own_peak()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print every table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peak", choices=("bare", "gradient", "evaluation", "search"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.peak:
        print(peak(given.peak, *SIZES[-1]) if given.peak in ("bare", "gradient") else organism_peak(given.peak))
        return
    print(f"hooked / bare, batch {BATCH} × {POSITIONS}, {NEW_TOKENS} new tokens")
    for size in SIZES:
        found = hooks(build(*size))
        print(f"  d_model {size[0]} × {size[1]} layers: " + ", ".join(f"{k} {v:.3f}" for k, v in found.items()))
    print("one batch of K candidates / K runs, 4 prompts")
    for size in SIZES:
        for positions in (1, 16, POSITIONS):
            cells = ", ".join(f"K={k} {ratio:.2f}" for k, ratio in together(build(*size), positions).items())
            print(f"  d_model {size[0]} × {size[1]} layers, {positions} positions: {cells}")
    print("forward and backward through the strengths / forward")
    for size in SIZES:
        print(f"  d_model {size[0]} × {size[1]} layers: {gradient_step(build(*size)):.2f}")
    for one, other, of in (
        ("bare", "gradient", f"one batch of {BATCH} × {POSITIONS}, d_model {SIZES[-1][0]} × {SIZES[-1][1]} layers"),
        ("evaluation", "search", "the base's evaluation and the whole search, shipped organism"),
    ):
        low, high = peak_of_process(one), peak_of_process(other)
        print(f"peak of the process, MB, {of}: {one} {low:.0f}, {other} {high:.0f} ({high / low:.2f})")


def peak_of_process(kind: str) -> float:
    """Of a fresh process: its memory is its own."""
    command = [sys.executable, "-m", "experiments.costs.bench", "--peak", kind]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
