"""Teacher-forced KL equals a loop over prompts and tokens without any padding."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from iconoclast_tl.architecture.hook_points import hf_sites
from iconoclast_tl.edits.hooks import hooked, preview
from iconoclast_tl.edits.updates import edit_updates, stack_updates
from iconoclast_tl.evaluation.metrics.divergence import BaseContinuations
from iconoclast_tl.execution.candidates import BatchCandidates
from iconoclast_tl.execution.generation import Response, generate
from iconoclast_tl.models.model import Model
from tests.edits.edits import random_edit
from tests.execution.test_resumption import edit_from

K = 6


def tokens_of(responses: Sequence[Response]) -> list[tuple[int, ...]]:
    return [response.tokens for response in responses]


def one_by_one(model: Model, rows: list[list[int]], responses: list[Response], edit) -> tuple[float, float]:
    first, sequence = [], []
    for row, response in zip(rows, responses, strict=True):
        kls = []
        for step in range(len(response.tokens[:K])):
            ids = torch.tensor([row + list(response.tokens[:step])])
            with torch.no_grad():
                base = model.hf(ids).logits[0, -1].double().log_softmax(-1)
                with preview(edit, hf_sites(model.hf)):
                    edited = model.hf(ids).logits[0, -1].double().log_softmax(-1)
            kls.append(float((base.exp() * (base - edited)).sum()))
        first.append(kls[0])
        sequence.append(sum(kls) / len(kls))
    return sum(first) / len(first), sum(sequence) / len(sequence)


def test_batched_divergence_equals_the_loop(llama: Model, rows: list[list[int]]) -> None:
    responses = generate(llama, rows, 9, batch_size=4)
    # Continuations of different lengths, one of them a single token, as early ends give them.
    responses = [Response(r.tokens[: 1 + i], r.text, r.finished) for i, r in enumerate(responses)]
    edit = random_edit()
    continuations = BaseContinuations(llama, rows, tokens_of(responses), K, batch_size=3)
    with preview(edit, hf_sites(llama.hf)):
        found = continuations.divergence()
    first, sequence = one_by_one(llama, rows, responses, edit)
    assert abs(found.first_token - first) < 1e-5 * max(first, 1)
    assert abs(found.sequence - sequence) < 1e-5 * max(sequence, 1)
    assert abs(first - sequence) > 1e-3  # the two are different measures here
    assert (found.n, found.tokens) == (len(rows), K)


def test_the_base_does_not_diverge_from_itself(llama: Model, rows: list[list[int]]) -> None:
    responses = generate(llama, rows, 4, batch_size=4)
    found = BaseContinuations(llama, rows, tokens_of(responses), 4, batch_size=3).divergence()
    assert found.first_token == found.sequence == 0


def test_each_prompt_has_its_own_divergence_and_a_gradient(llama: Model, rows: list[list[int]]) -> None:
    responses = generate(llama, rows, 9, batch_size=4)
    responses = [Response(r.tokens[: 1 + i], r.text, r.finished) for i, r in enumerate(responses)]
    continuations, sites = BaseContinuations(llama, rows, tokens_of(responses), K, batch_size=3), hf_sites(llama.hf)
    edits, order = [random_edit(), random_edit(seed=1)], [5, 0, 3]
    updates = stack_updates([edit_updates(edit, sites) for edit in edits])
    for values in updates.strengths.values():
        values.requires_grad_()
    with hooked(updates, sites) as assigned:
        assigned.candidates = torch.arange(2).repeat_interleave(len(order))
        found = continuations.kl(torch.tensor(order), 2)
        found.sum().backward()
    for c, edit in enumerate(edits):
        for place, row in enumerate(order):
            _, expected = one_by_one(llama, [rows[row]], [responses[row]], edit)
            assert abs(float(found[c, place]) - expected) < 1e-4 * max(expected, 1)
    assert all(bool((values.grad != 0).any()) for values in updates.strengths.values() if values.grad is not None)
    assert any(values.grad is not None for values in updates.strengths.values())


def test_the_first_log_probabilities_are_each_prompts_own(llama: Model, rows: list[list[int]]) -> None:
    responses = generate(llama, rows, 5, batch_size=4)
    lengths = (3, 1, 5, 2, 2, 4, 1)  # by which they are batched in another order
    responses = [Response(r.tokens[:n], r.text, r.finished) for r, n in zip(responses, lengths, strict=True)]
    found = BaseContinuations(llama, rows, tokens_of(responses), 4, batch_size=3).first_log_probs
    with torch.no_grad():
        alone = torch.stack([llama.hf(torch.tensor([row])).logits[0, -1].log_softmax(-1) for row in rows])
    assert torch.allclose(found, alone, atol=1e-5)
    assert found.argmax(-1).tolist() == [response.tokens[0] for response in responses]


def test_a_response_counts_as_unchanged_over_all_its_tokens(llama: Model, rows: list[list[int]]) -> None:
    responses = generate(llama, rows, 9, batch_size=4)
    other = [Response((*r.tokens[:-1], 7 if r.tokens[-1] != 7 else 8), r.text, r.finished) for r in responses]
    for said, expected in ((responses, True), (other, False)):  # the last token lies far behind the second
        moved = BaseContinuations(llama, rows, tokens_of(said), 2, batch_size=3).moved(BatchCandidates(), 1)
        assert moved.unchanged.tolist() == [[expected] * len(rows)]
        assert moved.divergences[0].sequence < 1e-6


def test_layers_left_out_change_no_divergence_and_not_what_they_were_left_out_of(
    llama: Model, rows: list[list[int]]
) -> None:
    responses = generate(llama, rows, 7, batch_size=4)
    whole = BaseContinuations(llama, rows, tokens_of(responses), 3, batch_size=3)
    late = whole.from_layer(2)
    order = torch.tensor([2, 6])
    for edit, same in ((edit_from(2), True), (edit_from(0), False)):
        with preview(edit, hf_sites(llama.hf)), torch.no_grad():
            pairs = [(one.kl(order)[0], one.divergence().sequence) for one in (whole, late)]
        assert torch.allclose(pairs[0][0], pairs[1][0], atol=1e-5) == same
        assert (abs(pairs[0][1] - pairs[1][1]) < 1e-5) == same  # below the start an edit is not seen


def test_no_batch_is_larger_than_was_asked_for(llama: Model, rows: list[list[int]]) -> None:
    continuations = BaseContinuations(llama, rows, tokens_of(generate(llama, rows, 3, 4)), 2, batch_size=4)
    sites = hf_sites(llama.hf)
    sizes: list[int] = []
    handle = llama.hf.base_model.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(args[0] if args else kwargs["hidden_states"])), with_kwargs=True
    )
    for edits in ([random_edit()], [random_edit(), random_edit(seed=1)]):
        sizes.clear()
        with hooked(stack_updates([edit_updates(edit, sites) for edit in edits]), sites) as assigned:
            moved = continuations.moved(assigned, len(edits))
        assert max(sizes) == 4
        assert sum(sizes) == len(edits) * len(rows)
        for edit, found in zip(edits, moved.divergences, strict=True):  # with two prompts of each candidate in a batch
            with preview(edit, sites):
                assert continuations.divergence().sequence == pytest.approx(found.sequence, rel=1e-5)
    handle.remove()
