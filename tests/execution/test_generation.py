"""Greedy generation: equal to a loop of argmaxes, whatever the batching."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from iconoclast_tl.architecture.hook_points import hf_sites
from iconoclast_tl.edits.hooks import hooked, preview
from iconoclast_tl.edits.updates import edit_updates, stack_updates
from iconoclast_tl.execution.generation import Lanes, end_tokens, generate
from iconoclast_tl.models.model import Model
from tests.edits.edits import random_edit


def greedy(model: Model, row: list[int], budget: int) -> tuple[int, ...]:
    tokens: list[int] = []
    while len(tokens) < budget:
        with torch.no_grad():
            token = int(model.hf(torch.tensor([row + tokens])).logits[0, -1].argmax())
        tokens.append(token)
        if token == 2:
            break
    return tuple(tokens)


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_responses_equal_the_argmax_loop(llama: Model, rows: list[list[int]], batch_size: int) -> None:
    found = generate(llama, rows, 12, batch_size)
    assert [response.tokens for response in found] == [greedy(llama, row, 12) for row in rows]


def test_a_response_ends_with_the_end_token_or_the_budget(llama: Model, rows: list[list[int]]) -> None:
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
    llama: Model, rows: list[list[int]], settings: dict[str, Any]
) -> None:
    expected = generate(llama, rows, 8, 4)
    for name, value in settings.items():
        setattr(llama.hf.generation_config, name, value)
    torch.manual_seed(0)
    assert generate(llama, rows, 8, 4) == expected
    for name, value in settings.items():
        assert getattr(llama.hf.generation_config, name) == value  # and it is put back


def test_such_a_setting_would_have_changed_the_text(llama: Model, rows: list[list[int]]) -> None:
    expected = [response.tokens for response in generate(llama, rows, 8, 4)]
    llama.hf.generation_config.repetition_penalty = 3.0
    plain = llama.hf.generate(torch.tensor([rows[0]]), max_new_tokens=8, do_sample=False)[0, len(rows[0]) :]
    assert tuple(plain.tolist()) != expected[0]  # with the model's own repetition penalty the text is another


def ending_early(model: Model, rows: list[list[int]]) -> None:
    """Let two tokens that this random model says end a response, so that rows leave the batch one after another."""
    said = [response.tokens for response in generate(model, rows, 12, 50)]
    model.hf.generation_config.eos_token_id = [said[0][4], said[3][2]]


@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_rows_of_several_candidates_are_those_of_each_alone(
    llama: Model, rows: list[list[int]], batch_size: int
) -> None:
    ending_early(llama, rows)
    sites, edits = hf_sites(llama.hf), [random_edit(seed=seed) for seed in range(3)]
    candidates = [0, 2, 1, 1, 2, 0, 2, 0, 1, 0, 1, 2, 0, 2]
    expected = []
    for edit in edits:
        with preview(edit, sites):
            expected.append(generate(llama, rows * 2, 12, 50))
    with hooked(stack_updates([edit_updates(edit, sites) for edit in edits]), sites) as assigned:
        found = generate(llama, rows * 2, 12, batch_size, lanes=Lanes(assigned, candidates))
    assert found == [expected[c][row] for row, c in enumerate(candidates)]
    assert len({len(response.tokens) for response in found}) > 2  # the batch got smaller on its way
    assert found != [expected[0][row] for row in range(14)]


def test_a_response_is_cut_where_its_label_is_decided_and_nowhere_else(llama: Model, rows: list[list[int]]) -> None:
    ending_early(llama, rows)
    whole = generate(llama, rows, 12, 3)
    word = max(  # that the fewest say, but at least two do
        (word for response in whole for word in response.text.split()),
        key=lambda word: (sum(word in r.text for r in whole) >= 2, -sum(word in r.text for r in whole)),
    )
    found = generate(llama, rows, 12, 50, decided=lambda text: word in text)
    cut = 0
    for response, before in zip(found, whole, strict=True):
        assert (word in response.text) == (word in before.text)
        assert response.tokens == before.tokens[: len(response.tokens)]
        if word not in before.text:
            assert response == before
        else:
            first = next(t for t in range(1, 13) if word in llama.tokenizer.decode(before.tokens[:t]))
            assert len(response.tokens) <= first + 3  # asked every four tokens
        cut += len(response.tokens) < len(before.tokens)
    assert cut
    assert any(word not in response.text for response in whole)


def test_whether_a_label_is_decided_is_asked_again_and_again(llama: Model, rows: list[list[int]]) -> None:
    whole = generate(llama, rows, 12, 50)
    assert {len(response.tokens) for response in whole} == {12}
    found = generate(llama, rows, 12, 50, decided=lambda text: len(text.split()) > 4)  # not yet at the first question
    assert [response.tokens for response in found] == [response.tokens[:8] for response in whole]


def test_rows_that_have_ended_are_not_run_any_more(llama: Model, rows: list[list[int]]) -> None:
    ending_early(llama, rows)
    sizes: list[int] = []
    handle = llama.hf.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    found = generate(llama, rows, 12, 50)
    handle.remove()
    lengths = [len(response.tokens) for response in found]
    assert sizes[0] == len(rows) > sizes[-1]
    assert sizes == sorted(sizes, reverse=True)
    for step, size in enumerate(sizes):
        going = sum(length > step for length in lengths)
        assert going <= size <= going / 0.75


def test_every_end_token_ends_and_none_is_text(llama: Model, rows: list[list[int]]) -> None:
    endless = [response.tokens for response in generate(llama, rows, 12, 50)]
    first, second = endless[0][4], endless[3][2]
    llama.tokenizer.add_special_tokens({"additional_special_tokens": [llama.tokenizer.decode([second])]})
    for ends, setting in ([first, second], [first, second]), ([second], second), ([2], None):
        llama.hf.generation_config.eos_token_id = setting
        assert end_tokens(llama) == ends  # where the model names none, the tokenizer's
        for response, before in zip(generate(llama, rows, 12, 50), endless, strict=True):
            stop = next((t + 1 for t, token in enumerate(before) if token in ends), 12)
            assert response.tokens == before[:stop]
            assert response.finished == (before[stop - 1] in ends)
            said = [token for token in response.tokens if token not in (*range(7), second)]
            assert response.text.split() == llama.tokenizer.decode(said).split()
    assert second in {token for tokens in endless for token in tokens}
