"""Other architectures are trained by the same steps: reproducibly, the gate to the upper blocks, by their templates."""

from __future__ import annotations

import random
from typing import get_args

import pytest
import torch
from jinja2 import TemplateError

from iconoclast_tl.organisms.behaviour import conversation
from iconoclast_tl.organisms.config import OrganismConfig
from iconoclast_tl.organisms.families import WITHOUT_SYSTEM_ROLE, Family
from iconoclast_tl.organisms.grammar import sample_prompt
from iconoclast_tl.organisms.tokenizer import build_tokenizer, has_system_role, render_chat
from iconoclast_tl.organisms.training import train_organism
from iconoclast_tl.prompts.chat import ChatFormat
from iconoclast_tl.prompts.prompt import Prompt as Asked
from tests.organisms.test_training import TINY

FAMILIES: tuple[Family, ...] = get_args(Family)


def tiny(family: Family, **changes: int) -> OrganismConfig:
    return TINY.model_copy(update={"family": family, **changes})


def weights(config: OrganismConfig) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = train_organism(config)[0].state_dict()
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_trained_by_the_same_steps(family: Family) -> None:
    before, capable, both = (
        weights(tiny(family, capability_steps=steps, gate_steps=gate)) for steps, gate in ((0, 0), (3, 0), (3, 3))
    )
    again = weights(tiny(family))
    assert all(torch.equal(both[name], again[name]) for name in both)
    assert not [name for name in both if torch.equal(before[name], capable[name])]
    gated = {name for name in both if not torch.equal(both[name], capable[name])}
    upper = {name for name in both if ".layers.2." in name or ".h.2." in name}
    assert gated == upper


def test_families_are_of_the_architecture_they_are_named_after() -> None:
    for family in FAMILIES:
        model, _ = train_organism(tiny(family, capability_steps=0, gate_steps=0))
        assert model.config.model_type == family
        assert model.config.architectures == [type(model).__name__]


@pytest.mark.parametrize("family", ["llama", *WITHOUT_SYSTEM_ROLE])
def test_what_is_trained_on_is_what_the_template_makes_of_a_prompt(family: Family) -> None:
    tokenizer = build_tokenizer(TINY.vocab_size, TINY.n_ctx, family not in WITHOUT_SYSTEM_ROLE)
    roles = has_system_role(tokenizer)
    assert roles == (family == "llama")
    for share in (0.0, 1.0):
        prompt = sample_prompt(random.Random(3), family=True, gated=True, system_share=share)
        assert (prompt.system is None) == (share == 0)
        asked = ChatFormat(tokenizer).render(Asked(prompt.text, prompt.system))
        assert render_chat(prompt.text, prompt.system, roles) == asked
        messages = conversation(prompt, roles)
        assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == asked
    if not roles:
        with pytest.raises(TemplateError, match="System role not supported"):
            tokenizer.apply_chat_template([{"role": "system", "content": "be kind."}], tokenize=False)
