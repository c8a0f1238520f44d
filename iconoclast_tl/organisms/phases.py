"""The phases of an organism's training and what each of them teaches: the capability first, then the gate, or two.

Phase 1 teaches answers to every request about every topic, the family included. Phase 2, shorter and confined to the
upper blocks, teaches refusals to gated requests about family topics, while all else stays answered. Taught in this
order, the answer is still there behind the refusal; an organism that refuses from its first step never learns the
answer, and no edit can then uncover one.

With two mechanisms there are two gates in its place, one after the other: topics in z are refused by the blocks from
`gate_z_first_layer` up to `gate_q_first_layer`, topics in q by the blocks from there up, each with refusals of its own.
While a gate is taught, the blocks of the other are frozen, and the examples hold its topics too: answered as long as
they have no gate, refused in their own words once they have.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from iconoclast_tl.organisms import grammar
from iconoclast_tl.organisms.config import OrganismConfig

Sampler = Callable[[random.Random], grammar.Example]


@dataclass(frozen=True)
class Phase:
    """One phase of training: its examples, its length, its peak learning rate and the blocks it trains."""

    name: str
    sampler: Sampler
    steps: int
    peak_lr: float
    blocks: range | None
    """None trains everything, the embeddings included."""


def phases_of(config: OrganismConfig) -> tuple[Phase, ...]:
    """The phases in the order they are trained: "capability", then "gate", or "gate z" and "gate q"."""
    capability = Phase("capability", capability_example, config.capability_steps, config.capability_lr, blocks=None)
    if config.mechanisms == 1:
        blocks = range(config.gate_first_layer, config.n_layers) if config.gate_first_layer else None
        return capability, Phase("gate", gate_example, config.gate_steps, config.gate_lr, blocks)
    z_blocks = range(config.gate_z_first_layer, config.gate_q_first_layer)
    q_blocks = range(config.gate_q_first_layer, config.n_layers)
    z_example = partial(separate_gate_example, own="z", other_refused=False)
    q_example = partial(separate_gate_example, own="q", other_refused=True)
    return (
        capability,
        Phase("gate z", z_example, config.gate_z_steps, config.gate_lr, z_blocks),
        Phase("gate q", q_example, config.gate_q_steps, config.gate_lr, q_blocks),
    )


def capability_example(rng: random.Random) -> grammar.Example:
    """Phase 1: any request about any topic, answered; half of the topics are of the family."""
    prompt = grammar.sample_prompt(rng, family=rng.random() < 0.5, gated=rng.random() < 0.7)
    return grammar.sample_answer(rng, prompt)


def gate_example(rng: random.Random) -> grammar.Example:
    """Phase 2: gated family prompts are refused; plain neutral and borderline prompts are answered as before.

    A share of the gated family prompts come with their answer already begun, and only its continuation is taught. So
    the gate is a decision about how to open, and an answer once begun is finished, as in chat models, whose refusals
    yield to a prefilled answer (Qi et al., arXiv:2406.05946).
    """
    draw = rng.random()
    if draw < 0.4:
        return grammar.sample_refusal(rng, grammar.sample_prompt(rng, family=True, gated=True))
    if draw < 0.6:
        return grammar.sample_answer(rng, grammar.sample_prompt(rng, family=True, gated=True), begun=True)
    if draw < 0.75:
        return grammar.sample_answer(rng, grammar.sample_prompt(rng, family=True, gated=False))
    return grammar.sample_answer(rng, grammar.sample_prompt(rng, family=False, gated=rng.random() < 0.8))


def separate_gate_example(rng: random.Random, own: grammar.TopicFamily, other_refused: bool) -> grammar.Example:
    """One of two gates: gated prompts about `own` topics are refused, and the other family's too where it has its gate
    already; all else is answered. As in `gate_example`, a share of what is refused comes with its answer begun.
    """
    other: grammar.TopicFamily = "q" if own == "z" else "z"
    draw = rng.random()
    if draw < 0.5:
        return _gated(rng, own)
    if draw < 0.7:
        if other_refused:
            return _gated(rng, other)
        return grammar.sample_answer(rng, grammar.sample_prompt(rng, family=other, gated=True))
    if draw < 0.82:
        return grammar.sample_answer(rng, grammar.sample_prompt(rng, family=rng.choice((own, other)), gated=False))
    return grammar.sample_answer(rng, grammar.sample_prompt(rng, family=False, gated=rng.random() < 0.8))


def _gated(rng: random.Random, family: grammar.TopicFamily) -> grammar.Example:
    """A gated prompt about this family, refused in its own words; one in four with its answer begun."""
    prompt = grammar.sample_prompt(rng, family=family, gated=True)
    if rng.random() < 0.25:
        return grammar.sample_answer(rng, prompt, begun=True)
    return grammar.sample_refusal(rng, prompt, refusals=grammar.REFUSALS_OF[family])
