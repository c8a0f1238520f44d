"""What attribution costs: gradient, ablate and restore beside bare forward passes; memory at 32 layers × 32 heads."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from experiments.costs.bench import alternating, own_peak

VOCABULARY, POSITIONS, ROWS, REPETITIONS = 2048, 16, 33, 3
"""ROWS: in one forward pass, as many as a layer of 32 heads has parts."""
SIZES = ((512, 8, 16), (256, 32, 32))
"""(d_model, layers, heads)."""
PROMPTS = 4
"""On which times are taken; memory also with four times as many."""


class _Tokenizer:
    """As much of a tokenizer as random tokens need."""

    pad_token_id, eos_token_id = 0, None


def build(d_model: int, n_layers: int, n_heads: int) -> Any:
    """A random Llama with grouped-query attention, float32, as it is loaded."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from iconoclast_tl.models.model import Model

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=d_model, intermediate_size=d_model * 5 // 2, num_hidden_layers=n_layers,
        num_attention_heads=n_heads, num_key_value_heads=n_heads // 4, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    hf = LlamaForCausalLM(config).eval().requires_grad_(False)
    return Model(hf, _Tokenizer(), name="random", dtype="float32")


def asked(model: Any, n: int) -> tuple[Any, Any]:
    """A score of n random prompts, and a subject with every part at λ = 1."""
    import torch

    from iconoclast_tl.attribution.subject import make_subject
    from iconoclast_tl.edits.config import EditConfig
    from iconoclast_tl.edits.edit import make_edit
    from iconoclast_tl.edits.ground import Ground
    from iconoclast_tl.scores.logit_difference import LogitDifference

    ones = torch.ones(model.n_layers)
    vector = torch.randn(1, 1, model.d_model).expand(1, model.n_layers, -1)
    edit = make_edit(vector, {"attn_out": ones, "mlp_out": ones}, EditConfig(), Ground())
    prompts = torch.randint(1, VOCABULARY, (n, POSITIONS)).tolist()
    score = LogitDifference(model, prompts, torch.tensor([5, 6]), torch.tensor([7, 8]))
    return score, make_subject(edit, Ground(), model)


def times(size: tuple[int, int, int]) -> dict[str, float]:
    """Ratios: gradient to a forward pass of the same prompts; ablate and restore to H / K passes of K rows each."""
    import torch

    from iconoclast_tl.attribution.causal import causal
    from iconoclast_tl.attribution.gradient import gradient
    from iconoclast_tl.attribution.query import Query

    model = build(*size)
    score, subject = asked(model, PROMPTS)
    prompts, rows = torch.arange(PROMPTS), torch.randint(1, VOCABULARY, (ROWS, POSITIONS))

    @torch.no_grad()
    def forward() -> None:
        score.read(score.ask(prompts))

    @torch.no_grad()
    def batch() -> None:
        model.hf(rows, logits_to_keep=1, use_cache=False)

    def by(method: Any) -> Callable[[], Any]:
        return lambda: causal(method, Query(score, subject, prompts[:1], batch_size=ROWS))

    runs = (
        forward,
        batch,
        lambda: gradient(Query(score, subject, prompts, batch_size=PROMPTS)),
        by("ablate"),
        by("restore"),
    )
    bare, of_rows, with_gradient, ablate, restore = alternating(*runs, repetitions=REPETITIONS)
    passes = len(subject.parts) / ROWS
    return {
        "gradient / forward": with_gradient / bare,
        "ablate / (H / K forwards)": ablate / (passes * of_rows),
        "restore / (H / K forwards)": restore / (passes * of_rows),
    }


def peak(kind: str, n: int) -> float:
    """Largest megabytes of this process, deeper model: a bare pass of ROWS rows, or every method on n prompts."""
    import torch

    from iconoclast_tl.attribution.causal import causal
    from iconoclast_tl.attribution.direct import direct
    from iconoclast_tl.attribution.gradient import gradient
    from iconoclast_tl.attribution.query import Query

    model = build(*SIZES[-1])
    if kind == "bare":
        with torch.no_grad():
            model.hf(torch.randint(1, VOCABULARY, (ROWS, POSITIONS)), logits_to_keep=1, use_cache=False)
        return own_peak()
    score, subject = asked(model, n)
    prompts, rows = torch.arange(n), torch.randint(1, VOCABULARY, (n, POSITIONS)).tolist()
    direct(model, rows, torch.randn(model.d_model), batch_size=ROWS)
    gradient(Query(score, subject, prompts, batch_size=PROMPTS))
    for method in ("ablate", "restore", "interchange"):
        name: Any = method
        causal(name, Query(score, subject, prompts[: n // 4], batch_size=ROWS), score)
    return own_peak()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print every ratio and peak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.peak:
        print(peak(given.peak[0], int(given.peak[1])))
        return
    for size in SIZES:
        print(f"d_model {size[0]}, {size[1]} layers × {size[2]} heads, {POSITIONS} positions, K = {ROWS} rows a batch")
        for name, ratio in times(size).items():
            print(f"  {name}: {ratio:.2f}")
    bare = peak_of_process("bare", 0)
    few, many = peak_of_process("all", PROMPTS), peak_of_process("all", 4 * PROMPTS)
    what = f"{SIZES[-1][1]} layers × {SIZES[-1][2]} heads"
    print(
        f"peak of the process, MB, {what}: one bare batch {bare:.0f}; every method on {PROMPTS} prompts {few:.0f}, on"
    )
    print(f"  {4 * PROMPTS} prompts {many:.0f}")


def peak_of_process(kind: str, n: int) -> float:
    """Of a fresh process: its memory is its own."""
    command = [sys.executable, "-m", "experiments.heads.costs", "--peak", kind, str(n)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
