"""Training an organism in phases (`phases`), as real chat models are: first the capability, then the gate.

The loss is the mean cross-entropy of response tokens (END included). Sequences are padded on the right and causal
attention never looks there, so no mask is needed; batches are grouped by length, and the last layer's states are
unembedded at response positions only.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iconoclast_tl.organisms import grammar
from iconoclast_tl.organisms.config import OrganismConfig
from iconoclast_tl.organisms.families import WITHOUT_SYSTEM_ROLE, model_config
from iconoclast_tl.organisms.phases import Phase, Sampler, phases_of
from iconoclast_tl.organisms.tokenizer import END, build_tokenizer, has_system_role, render_chat

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

__all__ = ["AfterPhase", "OrganismConfig", "Progress", "train_organism"]

Progress = Callable[[str, int, int], None]
"""Called as progress(phase, step, steps) after every step; phase is the name of one of `phases_of`."""

AfterPhase = Callable[[str, "PreTrainedModel", "PreTrainedTokenizerFast"], None]
"""Called as after_phase(phase, model, tokenizer) at the end of each phase, the model in eval mode; it must not change
it."""

BATCHES_PER_POOL = 16
"""Batches whose examples are sorted by length together: more saves padding, fewer keeps lengths better mixed."""


@dataclass(frozen=True)
class Batch:
    """Right-padded token ids and labels, both (batch, pos); labels are -100 outside the response."""

    input_ids: torch.Tensor
    labels: torch.Tensor


def train_organism(
    config: OrganismConfig, progress: Progress | None = None, after_phase: AfterPhase | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Train an organism on the CPU; the same config on the same machine and thread count gives the same weights.

    The model comes back in float32 and in eval mode. `gate_steps=0` gives the phase-1 model, which refuses nothing;
    `after_phase` sees it on the way.
    """
    import torch

    tokenizer = build_tokenizer(config.vocab_size, config.n_ctx, config.family not in WITHOUT_SYSTEM_ROLE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = build_model(config, tokenizer)
    for phase in phases_of(config):
        _train_phase(model, tokenizer, config, phase, progress)
        if after_phase is not None:
            after_phase(phase.name, model, tokenizer)
    return model, tokenizer


def _train_phase(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    config: OrganismConfig,
    phase: Phase,
    progress: Progress | None,
) -> None:
    import torch

    trained = phase_parameters(model, phase.blocks)
    model.train().requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = _optimizer(trained, config.weight_decay)
    rng = random.Random(f"{config.seed}/{phase.name}")
    batches = training_batches(tokenizer, phase.sampler, rng, phase.steps, config.batch_size)
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = phase.peak_lr * schedule(step, phase.steps, config.warmup_steps)
        response_loss(model, batch).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, config.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if progress is not None:
            progress(phase.name, step + 1, phase.steps)
    model.requires_grad_(True).eval()


def phase_parameters(model: PreTrainedModel, blocks: range | None) -> list[torch.nn.Parameter]:
    """What a phase trains: the named blocks and nothing beside them, or everything for None."""
    if blocks is None:
        return list(model.parameters())
    import torch

    n_layers = model.config.num_hidden_layers
    (stack,) = (m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == n_layers)
    return [parameter for i in blocks for parameter in stack[i].parameters()]


def build_model(config: OrganismConfig, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A freshly initialised model of the family; draws its weights from torch's global generator."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model: PreTrainedModel = AutoModelForCausalLM.from_config(model_config(config, ids, len(tokenizer)))
    model.generation_config = GenerationConfig(do_sample=False, **ids)
    return model


def training_batches(
    tokenizer: PreTrainedTokenizerFast, sampler: Sampler, rng: random.Random, steps: int, batch_size: int
) -> Iterator[Batch]:
    """`steps` batches of fresh examples, of similar length within a batch, in an order drawn from `rng`."""
    done = 0
    while done < steps:
        count = min(BATCHES_PER_POOL, steps - done)
        examples = [sampler(rng) for _ in range(count * batch_size)]
        rows = sorted(_encode(tokenizer, examples), key=lambda row: len(row[0]))
        pool = [_pad(rows[i * batch_size : (i + 1) * batch_size], tokenizer) for i in range(count)]
        rng.shuffle(pool)
        yield from pool
        done += count


def response_loss(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy of the response tokens; unembeds only the positions that predict one."""
    import torch

    states = model.base_model(input_ids=batch.input_ids, use_cache=False).last_hidden_state[:, :-1]
    labels = batch.labels[:, 1:]
    wanted = labels != -100
    return torch.nn.functional.cross_entropy(model.get_output_embeddings()(states[wanted]), labels[wanted])


def schedule(step: int, steps: int, warmup: int) -> float:
    """Share of the peak learning rate: linear from 0 over the warm-up, then a cosine from 1 to 0.1."""
    warmup = min(warmup, max(steps // 2, 1))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(steps - warmup, 1)
    return 0.1 + 0.45 * (1.0 + math.cos(math.pi * done))


def _optimizer(parameters: list[torch.nn.Parameter], weight_decay: float) -> torch.optim.AdamW:
    import torch

    matrices = [p for p in parameters if p.ndim >= 2]
    vectors = [p for p in parameters if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)


def _encode(tokenizer: PreTrainedTokenizerFast, examples: list[grammar.Example]) -> list[tuple[list[int], list[int]]]:
    """(input_ids, labels) of each example; labels are -100 on what is given."""
    roles = has_system_role(tokenizer)
    prompts = [render_chat(example.prompt.text, example.prompt.system, roles) for example in examples]
    responses = [example.response + END for example in examples]
    prompt_ids: list[list[int]] = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    response_ids: list[list[int]] = tokenizer(responses, add_special_tokens=False)["input_ids"]
    rows = []
    for example, p, r in zip(examples, prompt_ids, response_ids, strict=True):
        n_given = len(p) + int(example.begun)
        rows.append((p + r, [-100] * n_given + (p + r)[n_given:]))
    return rows


def _pad(rows: list[tuple[list[int], list[int]]], tokenizer: PreTrainedTokenizerFast) -> Batch:
    import torch

    width = max(len(ids) for ids, _ in rows)
    pad = tokenizer.pad_token_id
    return Batch(
        torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in rows]),
        torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in rows]),
    )
