"""Whether right folds pass and wrong ones fail, on random models of 3 to 48 layers in three dtypes."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iconoclast_tl.edits.edit import Edit
    from iconoclast_tl.folding.fidelity import Fidelity
    from iconoclast_tl.models.model import Model

DEPTHS = (3, 6, 12, 24, 48)
DTYPES = ("float32", "bfloat16", "float16")
FIXED = 1e-4
"""A tolerance that knows nothing of depth: the control, in float32."""
LARGEST_LOGIT = 40.0
"""To which the head is scaled: as SmolLM2-135M has it."""
LENGTHS = (24, 17, 9, 5)
"""Tokens of the rows that are compared."""


def random_model(n_layers: int, d_model: int, dtype: str) -> Model:
    """A Llama whose random layers keep the size of what they read, and whose largest logit is `LARGEST_LOGIT`."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from iconoclast_tl.models.model import Model
    from iconoclast_tl.organisms.folder import shipped_folder

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(str(shipped_folder()))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=d_model,
        intermediate_size=d_model * 5 // 2,
        num_hidden_layers=n_layers,
        num_attention_heads=d_model // 16,
        num_key_value_heads=d_model // 32,
        initializer_range=d_model**-0.5,
    )
    hf: Any = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        largest = float(hf(torch.arange(64)[None]).logits.abs().max())
        hf.lm_head.weight *= LARGEST_LOGIT / largest
    return Model(hf.to(getattr(torch, dtype)), tokenizer, name=f"a random Llama of {n_layers} layers")


def cases(edit: Edit) -> Mapping[str, Edit]:
    """The edit; without its weakest module; with the strength of that 5% higher."""
    site = min(edit.sites, key=lambda one: float(edit.strengths[one.component][:, one.layer].abs().sum()))

    def changed(factor: float) -> Edit:
        strengths = {name: values.clone() for name, values in edit.strengths.items()}
        strengths[site.component][:, site.layer] *= factor
        return replace(edit, strengths=strengths)

    return {"right": edit, "missing": changed(0), "5% off": changed(1.05)}


def agreements(model: Model, edited: int | None = None, merge: bool = True) -> Mapping[str, Fidelity]:
    """The preview of a random edit against adapters, and merged weights, of each of the `cases`.

    edited: how many layers are, evenly spaced; None: all.
    """
    import torch

    from iconoclast_tl.doctor.checks import Kind, random_edit
    from iconoclast_tl.folding.fold import fold
    from iconoclast_tl.folding.merge import merged_model
    from iconoclast_tl.folding.verification import agreement_of_fold

    generator, found = torch.Generator().manual_seed(0), {}
    edit = random_edit(model, Kind(name="plain", n_layers=edited))
    vocabulary = model.hf.config.vocab_size
    rows = [torch.randint(vocabulary, (n,), generator=generator).tolist() for n in LENGTHS]
    for name, folded in cases(edit).items():
        made = fold(folded, model)
        with tempfile.TemporaryDirectory() as place:
            merged = merged_model(made) if merge else None
            found[name] = agreement_of_fold(edit, made, rows, made.save(place).path, merged)
    return found


def is_told(found: Mapping[str, Fidelity]) -> bool:
    """Whether the right fold passes, and adapters of the others do not."""
    return found["right"].ok and not any(found[name].adapter_by_module.ok for name in found if name != "right")


def lines(dtype: str, n_layers: int, found: Mapping[str, Fidelity]) -> Iterator[str]:
    """Rows of the table: a case each."""
    for name, one in found.items():
        logits, modules, merged = one.preview_vs_adapter, one.adapter_by_module, one.merged_by_module
        cells = [
            dtype,
            str(n_layers),
            name,
            f"{logits.max_abs_logit_diff:.1e}",
            f"{logits.tolerance:.1e} {_said(logits.ok)}",
            _said(logits.max_abs_logit_diff <= FIXED) if dtype == "float32" else "",
            f"{modules.max_relative_error:.1e}",
            f"{modules.tolerance:.1e} {_said(modules.ok)}",
            f"{merged.max_relative_error:.1e} of {merged.tolerance:.1e} {_said(merged.ok)}" if merged else "",
        ]
        yield f"| {' | '.join(cells)} |"


def _said(ok: bool) -> str:
    return "passes" if ok else "fails"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table; exit status 1 where a right fold fails or a wrong one passes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=256, help="d_model (default 256)")
    parser.add_argument("--layers", type=int, nargs="+", default=DEPTHS)
    parser.add_argument("--dtypes", nargs="+", default=DTYPES, choices=DTYPES)
    parser.add_argument("--model", type=Path, help="a model's folder instead, in its own dtype")
    given = parser.parse_args(arguments)
    print("| dtype | layers | fold | any logit | tolerance | fixed 1e-4 | any module | tolerance | of merged weights |")
    print("|---|---|---|---|---|---|---|---|---|")
    told = True
    for model in _models(given):
        found = agreements(model)
        told &= is_told(found)
        print("\n".join(lines(model.dtype, model.n_layers, found)), flush=True)
    if not told:
        sys.exit(1)


def _models(given: argparse.Namespace) -> Iterator[Model]:
    from iconoclast_tl.models.load import load_model

    if given.model:
        yield load_model(str(given.model))
        return
    for dtype in given.dtypes:
        for n_layers in given.layers:
            yield random_model(n_layers, given.width, dtype)


if __name__ == "__main__":
    main()
