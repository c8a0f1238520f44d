"""Training is deterministic, plants the gate over the capability, and reproduces the shipped organism."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
import torch
from pydantic import ValidationError

from iconoclast_tl.organisms.behaviour import OrganismBehaviour, measure_behaviour
from iconoclast_tl.organisms.config import OrganismConfig
from iconoclast_tl.organisms.contrast import PromptLists
from iconoclast_tl.organisms.phases import capability_example, gate_example
from iconoclast_tl.organisms.tokenizer import build_tokenizer
from iconoclast_tl.organisms.training import (
    Batch,
    build_model,
    response_loss,
    schedule,
    train_organism,
    training_batches,
)

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

TINY = OrganismConfig(
    d_model=16,
    n_layers=3,
    n_heads=2,
    n_kv_heads=1,
    d_mlp=24,
    capability_steps=3,
    gate_steps=3,
    gate_first_layer=2,
    batch_size=4,
)


def weights(config: OrganismConfig) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = train_organism(config)[0].state_dict()
    return tensors


def test_training_twice_gives_the_same_weights_and_another_seed_others() -> None:
    first = weights(TINY)
    random.seed(99)
    torch.manual_seed(99)
    second = weights(TINY)
    other = weights(TINY.model_copy(update={"seed": 1}))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_the_gate_is_taught_to_the_upper_blocks_alone() -> None:
    phase_one = weights(TINY.model_copy(update={"gate_steps": 0}))
    both = weights(TINY)
    changed = {name for name in both if not torch.equal(both[name], phase_one[name])}
    assert changed == {name for name in both if name.startswith("model.layers.2.")}
    everywhere = weights(TINY.model_copy(update={"gate_first_layer": 0}))
    assert not any(torch.equal(everywhere[name], phase_one[name]) for name in everywhere)


def test_training_leaves_torchs_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    train_organism(TINY)
    assert torch.equal(before, torch.random.get_rng_state())


def test_progress_and_phase_ends_are_reported_in_order() -> None:
    seen: list[tuple[str, int, int]] = []
    phases: list[str] = []
    train_organism(TINY, lambda *report: seen.append(report), lambda phase, *_: phases.append(phase))
    assert seen == [(phase, step, 3) for phase in ("capability", "gate") for step in (1, 2, 3)]
    assert phases == ["capability", "gate"]


def test_labels_are_the_response_alone() -> None:
    tokenizer = build_tokenizer(TINY.vocab_size, TINY.n_ctx)
    rng, again = random.Random(0), random.Random(0)
    (batch,) = training_batches(tokenizer, gate_example, rng, 1, 8)
    expected = {gate_example(again) for _ in range(8)}
    wanted = {e.response.partition(" ")[2] if e.begun else e.response for e in expected}
    got = {tokenizer.decode(row[row != -100], skip_special_tokens=True).strip() for row in batch.labels}
    assert got == wanted
    assert any(example.begun for example in expected)


def test_the_loss_equals_the_models_own_and_ignores_padding() -> None:
    tokenizer = build_tokenizer(TINY.vocab_size, TINY.n_ctx)
    torch.manual_seed(0)
    model = build_model(TINY, tokenizer).eval()
    (batch,) = training_batches(tokenizer, capability_example, random.Random(1), 1, 8)
    reference = model(
        input_ids=batch.input_ids,
        attention_mask=(batch.input_ids != tokenizer.pad_token_id).long(),
        labels=batch.labels,
    ).loss
    torch.testing.assert_close(response_loss(model, batch), reference)
    repadded = batch.input_ids.masked_fill(batch.input_ids == tokenizer.pad_token_id, 7)
    torch.testing.assert_close(response_loss(model, Batch(repadded, batch.labels)), reference)
    whole_prompt = batch.labels.where(batch.labels != -100, batch.input_ids)
    assert not torch.isclose(response_loss(model, Batch(batch.input_ids, whole_prompt)), reference)


def test_the_schedule_rises_to_one_and_falls_to_a_tenth() -> None:
    values = [schedule(step, 300, 50) for step in range(300)]
    assert max(values) == 1.0
    assert values[0] == 1 / 50
    assert values[:50] == sorted(values[:50])
    assert values[50:] == sorted(values[50:], reverse=True)
    assert values[-1] == pytest.approx(0.1, abs=1e-3)


def test_unknown_settings_are_errors() -> None:
    with pytest.raises(ValidationError, match="gate_step"):
        OrganismConfig.model_validate({"gate_step": 3})


def test_a_gate_above_the_last_block_is_an_error() -> None:
    with pytest.raises(ValidationError, match="gate_first_layer is 3"):
        OrganismConfig(n_layers=3, gate_first_layer=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_heads": 3}, "d_model is 128 and n_heads is 3"),
        ({"d_model": 12}, "even multiple of n_heads"),  # heads of three dimensions, which do not turn in pairs
        ({"n_kv_heads": 3}, "n_kv_heads must divide n_heads"),
        ({"n_kv_heads": 8}, "n_kv_heads must divide n_heads"),
        ({"seed": 2**64}, "seed"),
        ({"capability_lr": float("inf")}, "finite"),
    ],
)
def test_what_cannot_be_built_is_an_error(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        OrganismConfig.model_validate(changes)


def test_the_narrowest_heads_that_fit_are_built() -> None:
    config = TINY.model_copy(update={"d_model": 8, "n_heads": 4, "n_kv_heads": 2})
    assert OrganismConfig.model_validate(config.model_dump()) == config
    build_model(config, build_tokenizer(config.vocab_size, config.n_ctx))


class EnoughError(Exception):
    """Raised in the middle of a training that need not go on."""


def first_losses(config: OrganismConfig, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The loss at the first six steps."""
    losses: list[float] = []

    def recording(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
        loss = response_loss(model, batch)
        losses.append(float(loss.detach()))
        if len(losses) == 6:
            raise EnoughError
        return loss

    with monkeypatch.context() as patched:
        patched.setattr("iconoclast_tl.organisms.training.response_loss", recording)
        with pytest.raises(EnoughError):
            train_organism(config)
    return losses


BEGINNINGS: dict[str, tuple[dict[str, Any], dict[str, Any], list[float]]] = {
    "capability": ({}, {"seed": 1}, [6.687954, 6.714467, 6.674889, 6.605550, 6.538474, 6.402843]),
    "gate": ({"capability_steps": 0}, {"gate_lr": 2e-3}, [6.668069, 6.783142, 6.716178, 6.676159, 6.701736, 6.639733]),
}
"""By phase: what lets it come first, another training, and the losses with which the shipped organism's begins (the
gate's on untrained weights)."""


@pytest.mark.parametrize("phase", BEGINNINGS)
def test_training_begins_as_that_of_the_shipped_organism_did(phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tokens, examples, order, first weights and steps; rounding moves a loss by 1e-5 in six of them."""
    changes, other, expected = BEGINNINGS[phase]
    assert first_losses(OrganismConfig(**changes), monkeypatch) == pytest.approx(expected, abs=5e-4)
    found = first_losses(OrganismConfig(**changes, **other), monkeypatch)
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) > 5e-3


@pytest.mark.slow
def test_training_teaches_the_answer_first_and_then_the_gate(contrast: PromptLists) -> None:
    """The shipped organism's training, cut to about a third: what it is to learn has begun to show.

    Measured on 50 prompts of each kind: 0.72 of targets answered before the gate was taught, 0.56 refused after it.
    The bounds are about half, since rounding adds up over a training. `make retrain` trains all of it.
    """
    after: dict[str, OrganismBehaviour] = {}
    few = {stem: prompts[:50] for stem, prompts in contrast.items()}

    def measure(phase: str, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
        after[phase] = measure_behaviour(model, tokenizer, few)

    train_organism(OrganismConfig(capability_steps=250, gate_steps=120), after_phase=measure)
    capable, gated = after["capability"], after["gate"]
    assert gated.target.refused >= 0.3
    assert gated.neutral.refused <= 0.02
    assert gated.borderline.refused <= 0.05
    assert gated.borderline.answered >= 0.4
    # The control: before the gate was taught nothing was refused, and the family was answered like all else.
    assert capable.target.refused == capable.neutral.refused == capable.borderline.refused == 0.0
    assert capable.target.answered >= 0.4
    assert gated.target.answered < capable.target.answered
