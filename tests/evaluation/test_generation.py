"""Greedy generation: equal to a loop of argmaxes, whatever the batching."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from iconoclast_tl.evaluation.generation import generate
from iconoclast_tl.models.loading import LoadedModel


def greedy(model: LoadedModel, row: list[int], budget: int) -> tuple[int, ...]:
    tokens: list[int] = []
    while len(tokens) < budget:
        with torch.no_grad():
            token = int(model.hf(torch.tensor([row + tokens])).logits[0, -1].argmax())
        tokens.append(token)
        if token == 2:
            break
    return tuple(tokens)


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_responses_equal_the_argmax_loop(llama: LoadedModel, rows: list[list[int]], batch_size: int) -> None:
    found = generate(llama, rows, 12, batch_size)
    assert [response.tokens for response in found] == [greedy(llama, row, 12) for row in rows]


def test_a_response_ends_with_the_end_token_or_the_budget(llama: LoadedModel, rows: list[list[int]]) -> None:
    endless = generate(llama, rows, 12, 3)
    end = endless[0].tokens[4]  # whatever this random model says there shall end a response
    llama.hf.generation_config.eos_token_id = end
    found = generate(llama, rows, 12, 3)
    assert found[0].finished
    assert not all(response.finished for response in found)
    for response, before in zip(found, endless, strict=True):
        cut = before.tokens.index(end) + 1 if end in before.tokens else 12
        assert response.tokens == before.tokens[:cut]
        assert response.finished == (end in before.tokens)


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True, "temperature": 5.0},
        {"repetition_penalty": 3.0},
        {"no_repeat_ngram_size": 1},
        {"suppress_tokens": list(range(3, 40))},
        {"begin_suppress_tokens": list(range(3, 40))},
        {"bad_words_ids": [[i] for i in range(3, 40)]},
        {"encoder_repetition_penalty": 4.0},
        {"guidance_scale": 4.0},
        {"num_return_sequences": 2},
        {"return_dict_in_generate": True},
        {"stop_strings": ["w1"]},
        {"max_time": 1e-6},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_no_setting_that_came_with_the_model_is_used(
    llama: LoadedModel, rows: list[list[int]], settings: dict[str, Any]
) -> None:
    expected = generate(llama, rows, 8, 4)
    for name, value in settings.items():
        setattr(llama.hf.generation_config, name, value)
    torch.manual_seed(0)
    assert generate(llama, rows, 8, 4) == expected
    for name, value in settings.items():
        assert getattr(llama.hf.generation_config, name) == value  # and it is put back


def test_such_a_setting_would_have_changed_the_text(llama: LoadedModel, rows: list[list[int]]) -> None:
    expected = [response.tokens for response in generate(llama, rows, 8, 4)]
    llama.hf.generation_config.repetition_penalty = 3.0
    plain = llama.hf.generate(torch.tensor([rows[0]]), max_new_tokens=8, do_sample=False)[0, len(rows[0]) :]
    assert tuple(plain.tolist()) != expected[0]  # with the model's own repetition penalty the text is another
