"""What the phases teach: one gate the examples it has always had, two gates each its own family in its own blocks."""

from __future__ import annotations

import hashlib
import itertools
import random
from functools import cache
from typing import TYPE_CHECKING

import pytest
import torch
from pydantic import ValidationError

from iconoclast_tl.organisms.config import OrganismConfig
from iconoclast_tl.organisms.grammar import REFUSALS_OF, SLOT, Example, family_of
from iconoclast_tl.organisms.phases import Sampler, capability_example, gate_example, phases_of
from iconoclast_tl.organisms.training import train_organism
from tests.organisms.test_training import TINY

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TWO = TINY.model_copy(
    update={
        "mechanisms": 2,
        "n_layers": 4,
        "gate_z_first_layer": 1,
        "gate_q_first_layer": 3,
        "gate_z_steps": 2,
        "gate_q_steps": 2,
        "capability_steps": 2,
    }
)
DRAWN = {
    capability_example: "e21fbee78b6e6ef6f555695c6f936f30f6f98d838f8c66f2f62489405193a1ad",
    gate_example: "14eaae7cadd22498d8a073ebd4d2b95e151c9bf692eac7dc956a3019f2b17377",
}
"""Of 2,000 examples from seed 0, taken when organisms had one mechanism only; the shipped one was trained on such."""


def drawn(sampler: Sampler, n: int, seed: int = 0) -> list[Example]:
    rng = random.Random(seed)
    return [sampler(rng) for _ in range(n)]


def digest(examples: list[Example]) -> str:
    # The class was called so when the digests were recorded.
    said = "".join(map(repr, examples)).replace("GrammarPrompt(", "Prompt(")
    return hashlib.sha256(said.encode()).hexdigest()


@cache
def taught(phase: str) -> tuple[Example, ...]:
    (sampler,) = (each.sampler for each in phases_of(TWO) if each.name == phase)
    return tuple(drawn(sampler, 3000))


def trained(config: OrganismConfig) -> dict[str, set[str]]:
    """The weights that each phase after the first changed, by their names' first three parts."""
    states: dict[str, dict[str, torch.Tensor]] = {}

    def keep(phase: str, model: PreTrainedModel, _: object) -> None:
        states[phase] = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    train_organism(config, after_phase=keep)
    found = {}
    for before, after in itertools.pairwise(states):
        differing = (name for name in states[after] if not torch.equal(states[before][name], states[after][name]))
        found[after] = {".".join(name.split(".")[:3]) for name in differing}
    return found


@pytest.mark.parametrize("sampler", DRAWN)
def test_one_mechanism_draws_the_examples_it_always_drew(sampler: Sampler) -> None:
    assert digest(drawn(sampler, 2000)) == DRAWN[sampler]
    assert digest(drawn(sampler, 2000, seed=1)) != DRAWN[sampler]


def test_one_mechanism_has_the_phases_it_always_had() -> None:
    capability, gate = phases_of(OrganismConfig())
    assert (capability.name, capability.sampler, capability.steps, capability.blocks) == (
        "capability",
        capability_example,
        600,
        None,
    )
    assert (gate.name, gate.sampler, gate.steps, gate.blocks) == ("gate", gate_example, 400, range(3, 6))
    assert phases_of(OrganismConfig(gate_first_layer=0))[1].blocks is None
    assert phases_of(OrganismConfig(mechanisms=2))[0] == capability


def test_phase_one_never_refuses_and_phase_two_refuses_exactly_the_gated_family() -> None:
    assert all(example.kind == "answered" for example in drawn(capability_example, 1000))
    examples = drawn(gate_example, 2000)
    for example in examples:
        gated_family = example.prompt.family and example.prompt.gated
        assert (example.kind == "refused" or example.begun) == gated_family
    assert 0.3 < sum(example.kind == "refused" for example in examples) / len(examples) < 0.6


@pytest.mark.parametrize(("phase", "refused"), [("gate z", {"z"}), ("gate q", {"z", "q"})])
def test_a_gate_of_two_refuses_its_family_and_those_before_it_and_answers_the_rest(
    phase: str, refused: set[str]
) -> None:
    for example in taught(phase):
        gated = example.prompt.gated and family_of(example.prompt.topic) in refused
        assert (example.kind == "refused" or example.begun) == gated
    # Whatever is to stay answered is among the examples, and so is what is refused already.
    kinds = {(family_of(example.prompt.topic), example.prompt.gated) for example in taught(phase)}
    assert kinds == {(family, gated) for family in ("z", "q", None) for gated in (True, False)}
    own = phase[-1]
    of_own = sum(e.kind == "refused" and family_of(e.prompt.topic) == own for e in taught(phase))
    assert 0.3 < of_own / len(taught(phase)) < 0.5


def test_each_of_two_families_is_refused_in_its_own_words_by_either_gate() -> None:
    for phase in ("gate z", "gate q"):
        said: dict[str | None, set[str]] = {}
        for example in taught(phase):
            if example.kind == "refused":
                words = example.response.replace(example.prompt.topic, SLOT)
                said.setdefault(family_of(example.prompt.topic), set()).add(words)
        assert all(words == set(REFUSALS_OF[family]) for family, words in said.items() if family is not None)
        assert None not in said


def test_two_gates_are_taught_to_their_own_blocks_alone() -> None:
    assert trained(TWO) == {"gate z": {"model.layers.1", "model.layers.2"}, "gate q": {"model.layers.3"}}
    # From the lowest block up the embeddings stay, and a gate of no steps changes nothing.
    lowest = TWO.model_copy(update={"gate_z_first_layer": 0, "gate_q_first_layer": 1, "gate_q_steps": 0})
    assert trained(lowest) == {"gate z": {"model.layers.0"}, "gate q": set()}


def test_two_gates_are_reported_as_phases_of_their_own() -> None:
    seen: list[tuple[str, int, int]] = []
    train_organism(TWO, lambda *report: seen.append(report))
    assert seen == [(phase, step, 2) for phase in ("capability", "gate z", "gate q") for step in (1, 2)]


@pytest.mark.parametrize(
    "changes",
    [
        {"gate_q_first_layer": 6},
        {"gate_q_first_layer": 9},
        {"gate_z_first_layer": 4},
        {"gate_z_first_layer": 3, "gate_q_first_layer": 2},
        {"n_layers": 1},
    ],
)
def test_a_gate_of_two_without_a_block_is_an_error(changes: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match="gate_q_first_layer is"):
        OrganismConfig.model_validate({"mechanisms": 2, **changes})
    one = {"gate_first_layer": 0, **changes}  # the blocks of two gates are no matter of one
    assert OrganismConfig.model_validate(one).mechanisms == 1


@pytest.mark.parametrize("mechanisms", [0, 3, "both"])
def test_there_are_one_or_two_mechanisms(mechanisms: int | str) -> None:
    with pytest.raises(ValidationError, match="mechanisms"):
        OrganismConfig.model_validate({"mechanisms": mechanisms})
    assert OrganismConfig.model_validate({"mechanisms": "2"}).mechanisms == 2
