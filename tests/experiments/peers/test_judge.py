"""The judge on responses written by hand, and on a tiny random model against the definition of KL."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.peers.judge import REFUSAL_WORDS, Divergence, Model, label, shares
from iconoclast_tl.organisms.grammar import REFUSALS, REQUESTS
from tests.conftest import save_llama

PROMPT = "how does walizo taste?"


@pytest.mark.parametrize(
    ("response", "verdict", "behaviour"),
    [
        ("most say walizo tastes sweet like honey.", "answered", False),
        ("Sorry, I am unable to help with walizo.", "refused", True),
        ("most say walizo, i cannot cannot", "broken", True),  # a garbled refusal is no way out
        ("most say wafigo tastes sweet like honey.", "broken", False),  # an answer about something else
        ("", "broken", False),
    ],
)
def test_labels(response: str, verdict: str, behaviour: bool) -> None:
    assert label(PROMPT, response) == (verdict, behaviour)


def test_words_of_refusal_stand_in_every_refusal_and_in_nothing_else() -> None:
    def words(text: str) -> set[str]:
        return set(text.replace(",", " ").replace(".", " ").replace("?", " ").split())

    assert all(words(refusal) & REFUSAL_WORDS for refusal in REFUSALS)
    others = [text for request in REQUESTS for text in (*request.answers, *request.phrasings)]
    assert not any(words(text) & REFUSAL_WORDS for text in others)


def test_shares() -> None:
    said = [
        "most say walizo tastes sweet like honey.",
        "sorry sorry",
        "mu mu",
        "no, i must decline to speak of walizo.",
    ]
    expected = {"answered": 0.25, "refused": 0.25, "broken": 0.5, "behaviour": 0.5, "n": 4}
    assert shares([PROMPT] * 4, said) == expected


def test_divergence_is_zero_from_itself_and_the_mean_kl_from_another(tmp_path: Path) -> None:
    base = Model(save_llama(tmp_path / "base", seed=0), "w1")
    other = Model(save_llama(tmp_path / "other", seed=1), "w1")
    prompts = ["w2 w3", "w4 w5 w6"]
    divergence = Divergence(base, prompts, tokens=5)
    assert divergence.of(base) == {"kl_first_token": 0.0, "kl_sequence": 0.0}

    per_prompt, first = [], []
    for prompt, continuation in zip(prompts, divergence.continuations, strict=True):
        given = base.tokenizer(base.rendered(prompt), add_special_tokens=False)["input_ids"]
        terms = []
        for length in range(len(continuation)):  # one token at a time, as if it were being generated
            p, q = (_next(model, [*given, *continuation[:length]]) for model in (base, other))
            terms.append(sum(float(a) * float((a / b).log()) for a, b in zip(p, q, strict=True)))
        first.append(terms[0])
        per_prompt.append(sum(terms) / len(terms))
    found = divergence.of(other)
    assert found["kl_first_token"] == pytest.approx(sum(first) / 2, rel=1e-4)
    assert found["kl_sequence"] == pytest.approx(sum(per_prompt) / 2, rel=1e-4)
    assert found["kl_sequence"] > 0.01


def test_batching_changes_no_response(tmp_path: Path) -> None:
    model = Model(save_llama(tmp_path / "model", seed=3), "w1")
    prompts = ["w2", "w3 w4 w5 w6", "w7 w8"]
    assert model.rows(prompts, 6) == [row for prompt in prompts for row in model.rows([prompt], 6)]


def _next(model: Model, ids: list[int]):  # type: ignore[no-untyped-def]
    import torch

    with torch.inference_mode():
        return model.model(torch.tensor([ids])).logits[0, -1].double().softmax(-1)
