"""The harness on the shipped organism with task files of its own: offline, on base and changed model."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from iconoclast_tl.architecture.hook_points import hf_sites
from iconoclast_tl.directions.geometry import orthonormalize
from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.edits.hooks import preview
from iconoclast_tl.evaluation.corpora import Corpus, chat_text
from iconoclast_tl.evaluation.harness import HarnessConfig, _evaluated, _loaded, _wrapped, require_tasks, run_tasks
from iconoclast_tl.evaluation.metrics.cross_entropy import cross_entropy
from iconoclast_tl.execution.generation import generate
from iconoclast_tl.folding.fold import fold
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.adapter import loaded_adapter
from iconoclast_tl.models.model import Model
from iconoclast_tl.organisms.folder import shipped_folder
from iconoclast_tl.prompts.chat import ChatFormat
from iconoclast_tl.prompts.prompt import Prompt
from tests.edits.edits import scaled

pytestmark = pytest.mark.slow  # to know its tasks, the harness reads 14,000 files once
FOLDER = Path(__file__).parent / "harness_tasks"
Answered = dict[str, tuple[bool, ...]]


@pytest.fixture(autouse=True)
def _offline_and_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Task files name their documents from where they lie; nothing is kept in the user's cache."""
    import datasets

    monkeypatch.chdir(FOLDER)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture
def organism(load: Callable[..., Model]) -> Model:
    return load(shipped_folder())


def ablation(k: int, model: Model) -> Edit:
    """k random directions taken out everywhere, λ = 1: the more, the less is left of what the organism knows."""
    generator = torch.Generator().manual_seed(0)
    vectors = orthonormalize(torch.randn(k, model.n_layers, model.d_model, generator=generator))
    return Edit(
        directions=vectors,
        strengths={name: torch.ones(k, model.n_layers) for name in ("attn_out", "mlp_out")},
        centres={},
        row_normalization="none",
        rank=2,
    )


def hooks(edit: Edit, model: Model) -> Callable[[], AbstractContextManager[Any]]:
    return lambda: preview(edit, hf_sites(model.hf))


def settings(*tasks: str, **others: Any) -> HarnessConfig:
    return HarnessConfig(tasks=tasks, folder=FOLDER, **others)


def documents() -> list[dict[str, Any]]:
    import json

    return [json.loads(line) for line in (FOLDER / "questions.jsonl").read_text().splitlines()]


def by_likelihood(model: Model) -> tuple[list[float], tuple[bool, ...]]:
    """log p of every choice after its rendered question, by teacher forcing, and whether the right one has the most."""
    chat = ChatFormat(model.tokenizer)
    texts = [chat_text(Prompt(row["question"]), choice, chat, 999) for row in documents() for choice in row["choices"]]
    found = cross_entropy(model, Corpus("choices", tuple(text for text in texts if text)), 5)
    by_row = np.array(found.nll).reshape(-1, 3)
    return [-one for one in found.nll], tuple(
        bool(one.argmin() == row["gold"]) for one, row in zip(by_row, documents(), strict=True)
    )


def by_saying(model: Model) -> tuple[bool, ...]:
    """Whether the greedy answer is, word for word, the right choice."""
    rows = [ChatFormat(model.tokenizer).encode(Prompt(row["question"])) for row in documents()]
    said = generate(model, rows, 28, 5)
    return tuple(one.text == row["choices"][row["gold"]] for one, row in zip(said, documents(), strict=True))


def test_log_likelihoods_are_those_of_teacher_forcing(organism: Model) -> None:
    config = settings("organism_choice")
    edit = ablation(80, organism)
    wrapped, loaded = _wrapped(organism, 4, True), _loaded(config)
    for change in (hooks(scaled(edit, 0), organism), hooks(edit, organism)):
        with change():
            run = _evaluated(wrapped, organism, loaded, config, None)
            expected = by_likelihood(organism)[0]
        given = [float(r[0][0]) for sample in run["samples"]["organism_choice"] for r in sample["resps"]]
        # float32 sums of up to 20 log-probabilities, padded on other sides.
        assert given == pytest.approx(expected, abs=1e-3)
    assert min(expected) < max(expected) - 1


@pytest.mark.parametrize(
    ("task", "k", "main"), [("organism_choice", 80, "acc"), ("organism_answer", 24, "exact_match")]
)
def test_documents_are_judged_as_by_hand_in_base_and_edited(organism: Model, task: str, k: int, main: str) -> None:
    edit = ablation(k, organism)
    by_hand = (lambda: by_likelihood(organism)[1]) if main == "acc" else (lambda: by_saying(organism))
    found = run_tasks(organism, hooks(edit, organism), settings(task), 5)
    base = by_hand()
    with preview(edit, hf_sites(organism.hf)):
        edited = by_hand()
    assert found.tasks.keys() == {task}
    one = found.tasks[task]
    assert one.correct == {"base": base, "edited": edited}
    assert all(base)  # the organism knows these
    assert 2 < sum(edited) < 10  # the edit took some
    assert one.main == f"{main},none"
    assert one.documents == tuple(f"{task}/{i}" for i in range(12))
    for model, right in (("base", base), ("edited", edited)):
        score, share = one.scores[model][one.main], sum(right) / 12
        assert score.value == pytest.approx(share)
        assert score.stderr == pytest.approx((share * (1 - share) / 11) ** 0.5)
        assert score.higher_is_better
    assert (one.n, one.shots, one.subtasks, one.version) == (12, 0, (), {"acc": "3.0"}.get(main, "1.0"))
    assert found.to_json()["tasks"][task]["edited"][one.main]["value"] == pytest.approx(sum(edited) / 12)
    assert found.to_json()["lm_eval"] == found.harness


def test_an_edit_of_no_strength_changes_nothing_and_nothing_is_left_behind(organism: Model) -> None:
    probe = torch.arange(3, 20)[None]
    before, tokenizer = organism.hf(probe).logits, copy.deepcopy(organism.tokenizer)
    states, drawn = (np.random.get_state(), torch.get_rng_state()), list[float]()
    edit = ablation(80, organism)
    task, unchanged = "organism_choice", hooks(scaled(edit, 0), organism)
    random.seed(5)
    same = run_tasks(organism, unchanged, settings(task), 5).tasks[task]
    drawn.append(random.random())
    assert same.scores["edited"] == same.scores["base"]
    assert same.correct["edited"] == same.correct["base"]
    random.seed(6)
    other = run_tasks(organism, hooks(edit, organism), settings(task), 5).tasks[task]
    drawn.append(random.random())
    assert other.correct["base"] == same.correct["base"] != other.correct["edited"]
    assert drawn[0] != drawn[1]  # the harness seeds; the type checker draws, so that states cannot be compared
    assert all(np.array_equal(now, then) for now, then in zip(np.random.get_state(), states[0], strict=True))
    assert torch.equal(torch.get_rng_state(), states[1])
    assert torch.equal(organism.hf(probe).logits, before)
    assert not [m for m in organism.hf.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not any(parameter.requires_grad for parameter in organism.hf.parameters())
    assert organism.tokenizer.special_tokens_map == tokenizer.special_tokens_map
    assert organism.tokenizer.padding_side == tokenizer.padding_side


def test_an_adapter_is_seen_as_the_hooks_are(organism: Model, tmp_path: Path) -> None:
    edit, config = ablation(80, organism), settings("organism_choice", "organism_answer")
    fold(edit, organism).save(tmp_path / "adapter")
    previewed = run_tasks(organism, hooks(edit, organism), config, 6).tasks
    folded = run_tasks(organism, lambda: loaded_adapter(organism, tmp_path / "adapter"), config, 6).tasks
    for name, one in folded.items():
        assert one.correct == previewed[name].correct
        assert one.correct["edited"] != one.correct["base"]


def test_without_a_change_there_is_only_the_base(organism: Model) -> None:
    found = run_tasks(organism, None, settings("organism_choice", limit=5), 5)
    one = found.tasks["organism_choice"]
    assert one.scores.keys() == one.correct.keys() == {"base"}
    assert (one.n, len(one.documents), found.limit) == (5, 5, 5)


def test_a_group_has_the_documents_of_its_tasks(organism: Model) -> None:
    found = run_tasks(organism, None, settings("organism", "organism_answer", limit=4), 5).tasks
    assert found.keys() == {"organism", "organism_choice", "organism_answer"}
    group, inner = found["organism"], found["organism_choice"]
    assert group.subtasks == ("organism_choice",)
    assert (group.documents, group.correct, group.n) == (inner.documents, inner.correct, 4)
    assert group.scores["base"]["acc,none"].value == 1
    assert (group.version, inner.version) == ("2.0", "3.0")


def test_examples_are_the_same_for_both_models(organism: Model) -> None:
    """Were they not, pairing would raise: the harness draws them at random."""
    found = run_tasks(organism, hooks(ablation(2, organism), organism), settings("organism_answer", num_fewshot=2), 5)
    assert found.tasks["organism_answer"].shots == 2
    assert len(found.tasks["organism_answer"].correct["edited"]) == 12


def test_where_memory_runs_out_the_batch_is_halved_and_the_numbers_are_the_same(
    organism: Model, caplog: pytest.LogCaptureFixture
) -> None:
    config, edit = settings("organism_choice"), ablation(80, organism)
    expected = run_tasks(organism, hooks(edit, organism), config, 8).tasks["organism_choice"].correct

    def small(module: Any, args: Any) -> None:
        if len(args[0]) > 3:
            raise torch.OutOfMemoryError

    handle = organism.hf.register_forward_pre_hook(small)
    found = run_tasks(organism, hooks(edit, organism), config, 8).tasks["organism_choice"].correct
    handle.remove()
    assert found == expected
    assert [record.message.rpartition(" ")[2] for record in caplog.records] == ["4", "2"]


def test_it_is_quiet_but_for_what_was_cut(
    organism: Model, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run_tasks(organism, None, settings("organism_choice", "organism_answer", limit=3), 5)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    run_tasks(organism, None, settings("organism_answer", num_fewshot=11, limit=3), 1)
    said = [record.message for record in caplog.records if record.name.startswith("iconoclast_tl")]
    (cut,) = said  # once, though every question was too long
    assert "truncat" in cut.lower()
    assert capfd.readouterr().out == ""


def test_a_base_model_is_asked_without_a_template(organism: Model) -> None:
    bare = replace(organism, tokenizer=copy.deepcopy(organism.tokenizer))
    bare.tokenizer.chat_template = None
    with pytest.raises(UserError, match=r"no chat template.*harness\.chat_template=false"):
        run_tasks(bare, None, settings("organism_choice"), 5)
    plain = run_tasks(bare, None, settings("organism_choice", chat_template=False), 5)
    assert not plain.chat_template
    assert plain.tasks["organism_choice"].n == 12


def test_a_chat_has_the_templates_special_tokens_and_raw_text_the_tokenizers(organism: Model) -> None:
    from tokenizers.processors import TemplateProcessing

    bare = replace(organism, tokenizer=copy.deepcopy(organism.tokenizer))
    tokenizer, bos = bare.tokenizer, organism.tokenizer.bos_token
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ bos_token }}", "")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    chat, prompt = ChatFormat(tokenizer), Prompt(documents()[0]["question"])
    assert _wrapped(bare, 1, True).tok_encode(chat.render(prompt)) == chat.encode(prompt)
    raw = _wrapped(bare, 1, False).tok_encode(prompt.text)
    assert raw == ChatFormat(tokenizer, raw_prompts=True).encode(prompt)
    assert raw[0] == tokenizer.bos_token_id != chat.encode(prompt)[0]


def test_a_tokenizer_without_padding_gets_none_from_the_harness(organism: Model) -> None:
    bare = replace(organism, tokenizer=copy.deepcopy(organism.tokenizer))
    bare.tokenizer.pad_token = None
    found = run_tasks(bare, None, settings("organism_answer"), 5)
    assert all(found.tasks["organism_answer"].correct["base"])
    assert bare.tokenizer.pad_token is None


def test_what_cannot_be_run_is_said_before_the_model_is_asked(
    organism: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = list[Any]()
    handle = organism.hf.register_forward_pre_hook(lambda *given: asked.append(given))
    for tasks, message in (
        (("organism_choise",), "has no task 'organism_choise': .*want a name such as organism_choice"),
        (("organism_choice", "gsm8"), "has no task 'gsm8': .*gsm8k"),
        (("organism_absent",), "cannot load the tasks organism_absent: got .*absent"),
        (("organism", "organism_choice"), "cannot load the tasks organism, organism_choice: got .*[Dd]uplicate"),
        (("organism_unsafe",), "organism_unsafe runs code"),
        (("organism_long",), "do not fit the model's context: got 256 tokens.*want less than 256"),
    ):
        with pytest.raises(UserError, match=message):
            run_tasks(organism, None, settings(*tasks), 5)
    handle.remove()
    assert not asked
    require_tasks(("organism", "organism_answer", "mmlu", "gsm8k"), FOLDER)
    with pytest.raises(UserError, match="there is no folder"):
        require_tasks(("mmlu",), tmp_path / "gone")
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(UserError, match=r"not installed: .*pip install 'iconoclast-tl\[harness\]'"):
        require_tasks(("mmlu",), tmp_path)
