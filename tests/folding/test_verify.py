"""The verbs `fold` and `verify` on plain objects: no run folder, a model, an edit and prompts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from iconoclast_tl.folding.fold import Fold, fold
from iconoclast_tl.folding.verification import verify
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.contrast import Split
from iconoclast_tl.prompts.prompt import Prompt
from tests.conftest import save_llama
from tests.edits.edits import random_edit, scaled

PROMPTS = ["w10 w11", "w12 w13 w14", "w20"]
SPLIT = Split((Prompt("w10 w11"),), (Prompt("w12 w13 w14"),), (Prompt("w20"),))


@pytest.fixture
def made(llama: Model) -> Fold:
    return fold(random_edit(), llama)


def test_a_saved_adapter_is_the_preview_and_one_of_other_strengths_is_not(made: Fold, tmp_path: Path) -> None:
    adapter = made.save(tmp_path / "adapter")
    assert Path(adapter) == adapter.path
    for prompts in (PROMPTS, SPLIT, [Prompt(text) for text in PROMPTS]):
        found = verify(made.edit, made.model, adapter, prompts)
        assert found.ok
        assert found.n == 3
    assert repr(found).startswith("Fidelity(ok: adapter differs by ")
    assert verify(made.edit, made.model, str(adapter), PROMPTS).to_json() == found.to_json()
    other = fold(scaled(made.edit, 1.01), made.model).save(str(tmp_path / "other"))
    wrong = verify(made.edit, made.model, other, PROMPTS)
    assert not wrong.ok
    assert "NOT the preview" in repr(wrong)


def test_merged_weights_are_the_preview_and_a_model_without_files_merges_too(
    made: Fold, tmp_path: Path, llama_folder: Path
) -> None:
    from transformers import AutoTokenizer

    held = Model(made.model.hf, made.model.tokenizer, name="mine, from memory")
    from_memory = fold(made.edit, held)
    adapter, merged = from_memory.save(tmp_path / "adapter"), from_memory.merge(tmp_path / "merged")
    found = verify(made.edit, held, adapter, PROMPTS, merged=merged)
    assert found.ok
    assert found.preview_vs_merged is not None
    assert found.merged_dtype == "float32"
    assert "merged weights differ by" in repr(found)
    assert AutoTokenizer.from_pretrained(str(merged)).get_vocab() == held.tokenizer.get_vocab()
    wrong = verify(made.edit, held, adapter, PROMPTS, merged=llama_folder)  # the base itself
    assert not wrong.ok
    assert wrong.preview_vs_adapter.ok


def test_a_model_with_tied_embeddings_merges_too(load: Callable[..., Model], tmp_path: Path) -> None:
    model = load(save_llama(tmp_path / "tied", tie_word_embeddings=True))
    made = fold(random_edit(), model)
    assert verify(made.edit, model, made.save(tmp_path / "a"), PROMPTS, merged=made.merge(tmp_path / "m")).ok


def test_an_earlier_adapter_goes_and_other_files_are_kept(made: Fold, tmp_path: Path) -> None:
    made.save(tmp_path / "adapter")
    (tmp_path / "adapter" / "old.safetensors").touch()
    made.save(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "old.safetensors").exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("precious")
    for write in (made.save, made.merge):
        with pytest.raises(UserError, match="thesis holds something else"):
            write(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "thesis.tex").read_text() == "precious"


def test_a_fold_says_what_it_is(made: Fold) -> None:
    assert repr(made).startswith("Fold(5 matrices of ")
    assert "\n" not in repr(made)


@pytest.mark.parametrize("layers", [2, 4])
def test_an_edit_of_another_model_is_refused(load: Callable[..., Model], tmp_path: Path, layers: int) -> None:
    other = load(save_llama(tmp_path / "other", num_hidden_layers=layers))
    with pytest.raises(UserError, match=rf"of another model: got 3 layers, d_model 24; want {layers} layers"):
        fold(random_edit(), other)
    with pytest.raises(UserError, match="of another model"):
        verify(random_edit(), other, tmp_path, PROMPTS)


def test_an_adapter_of_another_model_is_refused(made: Fold, load: Callable[..., Model], tmp_path: Path) -> None:
    wide = load(save_llama(tmp_path / "wide", hidden_size=32))
    adapter = fold(random_edit(d_model=32), wide).save(tmp_path / "of-wide")
    with pytest.raises(UserError, match="cannot load the adapter") as error:
        verify(made.edit, made.model, adapter, PROMPTS)
    assert "\n" not in str(error.value)
    further = made.save(tmp_path / "further")  # as of a model with more layers
    file = further.path / "adapter_model.safetensors"
    tensors = load_file(file)
    more = {
        name.replace("layers.0.", "layers.7."): tensor.clone()
        for name, tensor in tensors.items()
        if "layers.0." in name
    }
    assert more
    save_file({**tensors, **more}, file)
    with pytest.raises(UserError, match=r"of another model: got factors for model\.layers\.7\."):
        verify(made.edit, made.model, further, PROMPTS)


@pytest.mark.parametrize("prompts", [[], Split((), ()), ()])
def test_no_prompts_prove_nothing(made: Fold, tmp_path: Path, prompts: object) -> None:
    adapter = made.save(tmp_path / "adapter")
    with pytest.raises(UserError, match="there are no prompts to compare on"):
        verify(made.edit, made.model, adapter, prompts)  # type: ignore[arg-type]


def test_a_folder_that_holds_none_is_refused(made: Fold, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not an adapter: got no adapter_config\.json"):
        verify(made.edit, made.model, tmp_path, PROMPTS)
    adapter = made.save(tmp_path / "adapter")
    with pytest.raises(UserError, match="holds no merged weights"):
        verify(made.edit, made.model, adapter, PROMPTS, merged=adapter)
    shutil.rmtree(adapter.path)
    with pytest.raises(UserError, match="is not an adapter"):
        verify(made.edit, made.model, adapter, PROMPTS)


def test_the_model_stays_as_it_is(made: Fold, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in made.model.hf.state_dict().items()}
    verify(made.edit, made.model, made.save(tmp_path / "a"), PROMPTS, merged=made.merge(tmp_path / "m"))
    after = made.model.hf.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
