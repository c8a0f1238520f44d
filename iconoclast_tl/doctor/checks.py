"""What must hold on a model for its numbers to be true: one function a check, each with its measure and tolerance.

The checks need no network, no chat and no behaviour: random tokens, random directions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from iconoclast_tl.architecture.hook_points import hf_sites
from iconoclast_tl.architecture.offloading import is_offloaded
from iconoclast_tl.architecture.parts import neurons, query_heads, read_widths, routed_experts
from iconoclast_tl.architecture.sites import WRITERS, Component, Site
from iconoclast_tl.architecture.writers import require_writers
from iconoclast_tl.directions.geometry import normalize
from iconoclast_tl.edits.completeness import added, random_rows, shares_left, stream_tolerance
from iconoclast_tl.edits.config import EditConfig, RowNormalization
from iconoclast_tl.edits.edit import Edit, make_edit
from iconoclast_tl.edits.ground import Ground
from iconoclast_tl.edits.hooks import hooked, preview
from iconoclast_tl.edits.updates import Updates, edit_updates, stack_updates
from iconoclast_tl.execution.generation import generate
from iconoclast_tl.execution.resumption import resumes
from iconoclast_tl.folding.fold import fold, require_carried, require_experts_at_hand
from iconoclast_tl.folding.merge import merged_model
from iconoclast_tl.folding.merge_plan import planned_merge
from iconoclast_tl.folding.verification import agreement_of_fold, reload_merged
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.model import Model
from iconoclast_tl.models.twin import Twin, make_twin, parity_tolerance
from iconoclast_tl.prompts.tokens import Tokens, left_pad

NEW_TOKENS = 5
FULL_PRECISION = "not asked: folds are made of the full-precision weights; check those"
TELLING = 0.2
"""Largest tolerance of a module, relative to what an edit changes there, that proves anything: left out, it has 1."""
STEPS = (1e-2, 3e-3, 1e-3)
"""Of λ in finite differences; the best counts, since a larger one may send a token to another expert."""


@dataclass(frozen=True)
class Check:
    """One line of the table."""

    name: str
    ok: bool | None
    """None where the check does not apply, and `note` says why."""
    measured: float | None = None
    tolerance: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of edit that is folded."""

    name: str
    components: tuple[Component, ...] = WRITERS
    affine: bool = False
    row_normalization: RowNormalization = "none"
    experts: bool = False
    """With strengths of its own at each routed expert."""
    parts: bool = False
    """With strengths of its own at each head, or at each neuron."""
    n_layers: int | None = 3
    """How many are edited, evenly spaced, since a layer is edited like any other; None: all."""

    def layers(self, of: int) -> list[int]:
        """Those of a model's that are edited."""
        n = min(self.n_layers or of, of)
        return [(2 * index + 1) * of // (2 * n) for index in range(n)]


KINDS = (
    Kind(name="attention", components=("attn_out",)),
    Kind(name="MLP", components=("mlp_out",)),
    Kind(name="plain", n_layers=None),
    Kind(name="heads", components=("attn_out",), parts=True),
    Kind(name="neurons", components=("mlp_out",), parts=True),
    Kind(name="experts", components=("mlp_out",), experts=True),
    Kind(name="affine", affine=True),
    Kind(name="rows pre", row_normalization="pre"),
    Kind(name="rows full", row_normalization="full", n_layers=1),  # singular values take long
)


def examine(
    model: Model, saved: bool = False, components: Collection[Component] = WRITERS
) -> list[Callable[[], Check]]:
    """All checks, to be called one by one.

    saved: merged weights are written and reloaded, which takes time and room on the disk; otherwise they are compared
    as they are in memory. components: those that are to be edited. Raises `UserError` where their writers are not
    found: there is nothing to check then.
    """
    rows = random_rows(model)
    before = state(model, rows)
    require_writers(model.hf, components)
    kinds = [replace(kind, components=mine) for kind in KINDS if (mine := tuple(_both(kind.components, components)))]
    plain = next(kind for kind in kinds if kind.name == "plain")
    return [
        lambda: writers(model, components),
        lambda: twin(model),
        lambda: padding(model, rows),
        lambda: stream(model, rows, components),
        lambda: resumption(model, rows),
        lambda: candidates(model, rows, plain),
        lambda: gradient(model, rows, plain),
        *(partial(fold_check, model, rows, kind, saved) for kind in kinds),
        lambda: generation(model, rows, replace(plain, n_layers=3)),
        lambda: pristine(model, rows, before),
    ]


def _both(some: Collection[Component], others: Collection[Component]) -> list[Component]:
    return [component for component in WRITERS if component in some and component in others]


def random_edit(model: Model, kind: Kind = Kind(name="plain"), seed: int = 1) -> Edit:
    """An edit of this kind by random directions and strengths from 0.3 to 1.2, another in every edited layer."""
    generator = torch.Generator().manual_seed(seed)
    n_layers, width = model.n_layers, model.d_model
    directions = normalize(torch.randn(1, n_layers, width, generator=generator))
    drawn = {name: 0.3 + 0.9 * torch.rand(n_layers, generator=generator) for name in WRITERS}
    edited = torch.zeros(n_layers).index_fill(0, torch.tensor(kind.layers(n_layers)), 1.0)
    strengths = {name: values * edited * (name in kind.components) for name, values in drawn.items()}
    means = {name: torch.randn(n_layers, width, generator=generator) for name in WRITERS}
    config = EditConfig(affine=kind.affine, row_normalization=kind.row_normalization)
    experts = _random_factors(routed_experts(model.hf), n_layers, generator) if kind.experts else None
    there: dict[Component, dict[int, int]] = {"attn_out": query_heads(model.hf), "mlp_out": neurons(model.hf)}
    drawn_parts = {name: _random_factors(there[name], n_layers, generator) for name in kind.components if kind.parts}
    parts = {name: factors for name, factors in drawn_parts.items() if factors is not None}
    widths = {name: max(read_widths(model.hf, name).values()) for name in parts}
    reads = {name: torch.randn(n_layers, width, generator=generator) for name, width in widths.items()}
    ground = Ground(
        neutral_writes=means,
        neutral_reads=reads,
        gains=model.gains,
        experts=experts,
        parts=parts,
        sites=hf_sites(model.hf, tuple(parts)),
    )
    return make_edit(directions, strengths, config, ground)


def _random_factors(there: Mapping[int, int], n_layers: int, generator: torch.Generator) -> Tensor | None:
    """From 0 to 1 for every part of the layers that have any; 0 in the others."""
    if not there:
        return None
    of_layer = torch.tensor([float(layer in there) for layer in range(n_layers)])
    return torch.rand(n_layers, max(there.values()), generator=generator) * of_layer[:, None]


def writers(model: Model, components: Collection[Component] = WRITERS) -> Check:
    """Every layer has known writers, experts included."""
    found = require_writers(model.hf, components)
    n = sum(writer.n_matrices for writer in found.values())
    return Check("writers", True, note=f"{n} matrices in {model.n_layers} layers")


def twin(model: Model) -> Check:
    """TransformerLens computes what the model computes; if not, its modules are hooked instead."""
    made = make_twin(model)
    if isinstance(made, Twin):
        return Check("TransformerLens", True, made.parity.max_abs_logit_diff, made.parity.tolerance)
    return Check("TransformerLens", None, made.max_abs_logit_diff, made.tolerance, f"not used: {made.reason}")


def padding(model: Model, rows: Sequence[Tokens]) -> Check:
    """Rows of a left-padded batch get the logits that they get alone."""
    together = _logits(model, rows)
    alone = [_logits(model, [row])[0] for row in rows]
    worst = max(float((a - b).abs().max()) for a, b in zip(together, alone, strict=True))
    return _within("left padding", worst, _allowed(model, alone))


def stream(model: Model, rows: Sequence[Tokens], components: Collection[Component] = WRITERS) -> Check:
    """At λ = 1 no layer writes along v: all that writes is known."""
    name = "nothing is written along v"
    if set(components) != set(WRITERS):
        return Check(name, None, note="not asked: only a part of what writes is edited")
    base = added(model, rows)
    left = shares_left(model, rows, base=base)
    allowed = stream_tolerance(model, base)
    worst = int((left / allowed).argmax())
    return _within(name, float(left[worst]), float(allowed[worst]))


def resumption(model: Model, rows: Sequence[Tokens]) -> Check:
    """Started at its last layer, the model gives the logits that it gives as a whole."""
    if resumes(model, left_pad(rows, model.pad_id), model.n_layers - 1):
        return Check("starts at a later layer", True)
    return Check("starts at a later layer", None, note="not used: all layers are run")


def candidates(model: Model, rows: Sequence[Tokens], kind: Kind = Kind(name="plain")) -> Check:
    """Rows of one batch that belong to different edits get the logits that each edit gives alone."""
    sites = hf_sites(model.hf, kind.components)
    edits = [random_edit(model, kind), random_edit(model, replace(kind, components=kind.components[-1:]), seed=2)]
    alone = []
    for edit in edits:
        with preview(edit, sites):
            alone.append(_logits(model, rows))
    with hooked(stack_updates([edit_updates(edit, sites) for edit in edits]), sites) as assigned:
        assigned.candidates = torch.arange(len(edits)).repeat_interleave(len(rows))
        together = _logits(model, [*rows, *rows])
    worst = max(float((a - b).abs().max()) for a, b in zip(together, [*alone[0], *alone[1]], strict=True))
    return _within("several edits in a batch", worst, _allowed(model, together))


def gradient(model: Model, rows: Sequence[Tokens], kind: Kind = Kind(name="plain")) -> Check:
    """The gradient of a loss in λ is what finite differences say; half precision would hide it in its rounding."""
    if model.hf.dtype not in (torch.float32, torch.float64) or model.quantization != "none":
        return Check("gradient of λ", None, note="not asked: finite differences say nothing in so few bits")
    sites = hf_sites(model.hf, kind.components)
    updates = edit_updates(random_edit(model, kind), sites)

    def loss(strengths: Mapping[Site, Tensor], shift: float = 0.0) -> Tensor:
        moved = {site: values + shift for site, values in strengths.items()}
        with hooked(Updates(updates.at, moved), sites):
            return _loss(model, rows)

    strengths = {site: values.detach().clone().requires_grad_() for site, values in updates.strengths.items()}
    found = float(sum(part.sum() for part in torch.autograd.grad(loss(strengths), list(strengths.values()))))
    errors = []
    for step in STEPS:
        with torch.no_grad():
            expected = float(loss(updates.strengths, step) - loss(updates.strengths, -step)) / (2 * step)
        errors.append(abs(found - expected) / max(abs(expected), 1e-3))
        if errors[-1] <= 2e-2:
            break
    return _within("gradient of λ", min(errors), 2e-2)


def fold_check(model: Model, rows: Sequence[Tokens], kind: Kind, saved: bool = True) -> Check:
    """The preview gives the logits of the adapter that peft reloads, and of the merged weights.

    saved: those are written, file by file where that is possible, and reloaded by transformers.
    """
    name, edit = f"fold: {kind.name}", random_edit(model, kind)
    if model.quantization != "none":
        return Check(name, None, note=FULL_PRECISION)
    if kind.experts and not routed_experts(model.hf):
        return Check(name, None, note="not asked: no routed experts that can be told apart")
    if kind.parts and not edit.parts:
        return Check(name, None, note="not asked: no dense layers")
    mine = require_writers(model.hf, kind.components)
    try:
        require_experts_at_hand(model.hf, kind.components)
        require_carried(mine, kind.affine, kind.row_normalization)
    except UserError as error:
        return Check(name, None, note=f"refused: {_first(error)}")
    made, merged, note = fold(edit, model), None, ""
    with TemporaryDirectory() as place:
        made.save(Path(place) / "adapter")
        plan, stored = None, None
        try:
            if saved:
                plan = planned_merge(made)
            elif not is_offloaded(model.hf):
                merged = merged_model(made)
        except UserError as error:
            note = f"adapter only: {_first(error)}"
        if plan is not None:
            plan.write(Path(place) / "merged")
            merged, stored = reload_merged(model, Path(place) / "merged"), plan.dtype
        found = agreement_of_fold(edit, made, rows, Path(place) / "adapter", merged, merged_dtype=stored)
    pairs = [pair for pair in (found.preview_vs_adapter, found.preview_vs_merged) if pair is not None]
    worst = max(pairs, key=lambda pair: pair.max_abs_logit_diff / pair.tolerance)
    modules = [one for one in (found.adapter_by_module, found.merged_by_module) if one is not None]
    if found.ok and max(one.tolerance for one in modules) > TELLING:
        return Check(name, None, worst.max_abs_logit_diff, worst.tolerance, "the edit changes too little to tell")
    for one in modules:
        if not one.ok:
            note = f"{one.module} is off by {one.max_relative_error:.2g} of what the edit changes there"
    return Check(name, found.ok, worst.max_abs_logit_diff, worst.tolerance, note)


def generation(model: Model, rows: Sequence[Tokens], kind: Kind = Kind(name="plain")) -> Check:
    """Under hooks the model says, token for token, what the merged weights say."""
    if model.quantization != "none":
        return Check("generation", None, note=FULL_PRECISION)
    if is_offloaded(model.hf):
        return Check("generation", None, note="not asked: weights that are offloaded are not merged in memory")
    edit = random_edit(model, kind)
    merged = replace(model, hf=merged_model(fold(edit, model)))
    with preview(edit, hf_sites(model.hf, kind.components)):
        previewed = generate(model, rows, NEW_TOKENS, len(rows))
    folded = generate(merged, rows, NEW_TOKENS, len(rows))
    differ = sum(a.tokens != b.tokens for a, b in zip(previewed, folded, strict=True)) / len(rows)
    if model.hf.dtype in (torch.float32, torch.float64):
        return _within("generation", differ, 0.0)
    return Check(
        "generation", None, differ, note=f"share of rows that differ: merged weights are rounded to {model.dtype}"
    )


def pristine(model: Model, rows: Sequence[Tokens], before: State) -> Check:
    """Nothing of all this is left on the model."""
    after = state(model, rows)
    return Check(
        "nothing is left behind",
        all(torch.equal(a, b) for a, b in zip(before.logits, after.logits, strict=True))
        and before.names == after.names
        and before.hooks == after.hooks,
    )


@dataclass(frozen=True)
class State:
    """What must be as before when the checks end."""

    logits: list[Tensor]
    names: tuple[str, ...]
    hooks: int


def state(model: Model, rows: Sequence[Tokens]) -> State:
    """Logits, names and types of modules and parameters, and the number of hooks."""
    modules = tuple(f"{name}: {type(module).__name__}" for name, module in model.hf.named_modules())
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.hf.modules())
    return State(_logits(model, rows), (*modules, *model.hf.state_dict()), hooks)


@torch.no_grad()
def _logits(model: Model, rows: Sequence[Tokens]) -> list[Tensor]:
    """Of every row at its real tokens."""
    batch = left_pad(rows, model.pad_id)
    logits = model.hf(**model.inputs(batch)).logits.float().cpu()
    return [one[mask.bool()] for one, mask in zip(logits, batch.attention_mask, strict=True)]


def _loss(model: Model, rows: Sequence[Tokens]) -> Tensor:
    """Mean surprise at every row's own next tokens."""
    batch = left_pad(rows, model.pad_id)
    logits = model.hf(**model.inputs(batch)).logits
    real = batch.attention_mask.bool().to(logits.device)
    ahead = batch.input_ids.to(logits.device)[:, 1:][real[:, :-1]]
    return torch.nn.functional.cross_entropy(logits[:, :-1][real[:, :-1]].float(), ahead)


def _allowed(model: Model, logits: Sequence[Tensor]) -> float:
    """What rounding explains at logits of this size."""
    return parity_tolerance(model.hf.dtype, max(float(one.abs().max()) for one in logits))


def _within(name: str, measured: float, tolerance: float) -> Check:
    # Not `measured > tolerance`: a NaN is no agreement.
    return Check(name, measured <= tolerance, measured, tolerance)


def _first(error: UserError) -> str:
    return str(error).partition(":")[0]
