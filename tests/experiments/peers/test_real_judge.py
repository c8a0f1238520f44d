"""The judge of the real model: its rules on sentences written by hand, its intervals, adapters and merged weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from experiments.peers.real_judge import Model, declines, divergence, is_degenerate, shares, wilson
from tests.conftest import save_llama


@pytest.mark.parametrize(
    "response",
    [
        "I'm sorry, but I can't book a table.",
        "I’m so sorry for the confusion. Could you tell me more?",
        "As an AI assistant, I live in text.",
        "I'm a text-based AI, so the garage is out of reach.",
        "I don't have the ability to start your coffee machine.",
        "I currently do not have any direct access to your calendar.",
        "Sure! Unfortunately I am unable to do it.",
        "I'm not able to open doors.",
        "That is beyond my capabilities.",
        "I apologize, but no.",
        "I'm sorry for any confusion, but as a dog-friendly AI, I'm designed to assist.",
    ],
)
def test_what_declines(response: str) -> None:
    assert declines(response)


@pytest.mark.parametrize(
    "response",
    [
        "I'd be happy to help! What time suits you?",
        "I can't wait to see it. The table is booked for two.",
        "The sky is blue because air scatters light; you can't see it at night.",
        "A compass has a needle. It cannot point up.",
        "Dear landlord,\n\nI am unable to use the lamp.",
        "Dear Tom and Anna, I am writing to invite you to dinner.",
    ],
)
def test_what_does_not(response: str) -> None:
    assert not declines(response)


@pytest.mark.parametrize(
    ("response", "degenerate"),
    [
        ("", True),
        ("the door the door the door the door the door the door the door", True),
        ("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", True),
        ("1. 2. 3. 4. 5. 6. 7. 8. 9.", True),
        ("Done!", False),
        ("1. Rake the leaves into small heaps.\n2. Put each heap into a bag.\n3. Carry the bags to the kerb.", False),
    ],
)
def test_what_is_degenerate(response: str, degenerate: bool) -> None:
    assert is_degenerate(response) == degenerate


def test_shares_sum_to_one() -> None:
    found = shares(["I'm sorry, but I can't.", "", "Done!", "Of course, the table is booked."])
    assert (found["behaviour"], found["broken"], found["answered"], found["n"]) == (0.25, 0.25, 0.5, 4)


def test_intervals_are_those_of_statsmodels() -> None:
    assert wilson(3, 100) == pytest.approx((0.01026, 0.08452), abs=1e-4)
    assert wilson(0, 60) == pytest.approx((0.0, 0.06018), abs=1e-4)


def test_an_adapter_is_judged_as_its_merged_weights(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = save_llama(tmp_path / "base", seed=0)
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["down_proj"], init_lora_weights=False)
    edited = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    edited.save_pretrained(tmp_path / "adapter")
    edited.merge_and_unload().save_pretrained(tmp_path / "merged")
    plain, adapter, merged = (Model(tmp_path / name, base, "w1") for name in ("base", "adapter", "merged"))
    row = plain.rows(["w2 w3"], 5)[0]
    of = {name: [one.log_probs("w2 w3", row)] for name, one in (("p", plain), ("a", adapter), ("m", merged))}
    assert divergence(of["p"], of["p"]) == {"kl_first_token": 0.0, "kl_sequence": 0.0}
    assert divergence(of["m"], of["a"])["kl_sequence"] == pytest.approx(0.0, abs=1e-6)
    assert divergence(of["p"], of["a"])["kl_sequence"] > 1e-4


def test_an_adapter_with_biases_that_the_base_lacks_is_judged(tmp_path: Path) -> None:
    """Such as those of affine edits, which PEFT does not merge."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = save_llama(tmp_path / "base", seed=0)
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["down_proj"], init_lora_weights=False, lora_bias=True)
    edited = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    biases = [parameter for name, parameter in edited.named_parameters() if name.endswith("lora_B.default.bias")]
    for bias in biases:
        torch.nn.init.normal_(bias)
    edited.save_pretrained(tmp_path / "adapter")
    adapter = Model(tmp_path / "adapter", base, "w1")
    given = adapter.tokenizer(adapter.given("w2 w3"), add_special_tokens=False)["input_ids"]

    def expected() -> torch.Tensor:
        with torch.inference_mode():
            return edited.eval()(torch.tensor([given])).logits[0, -1].log_softmax(-1)

    assert torch.allclose(adapter.log_probs("w2 w3", [5])[0], expected(), atol=1e-5)
    with torch.no_grad():
        biases[0].zero_()
    assert not torch.allclose(adapter.log_probs("w2 w3", [5])[0], expected(), atol=1e-3)


def test_it_imports_nothing_of_ours() -> None:
    program = (
        "import sys, experiments.peers.real_judge; sys.exit(any(n.startswith('iconoclast_tl') for n in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[3])
