"""GGUF files as models: they compute what their dequantised weights compute, and become ordinary models."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from iconoclast_tl.doctor.checks import KINDS, fold_check
from iconoclast_tl.edits.completeness import random_rows
from iconoclast_tl.folding.fold import fold
from iconoclast_tl.folding.merge_plan import planned_merge
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models import gguf_parsed
from iconoclast_tl.models.config import ModelConfig
from iconoclast_tl.models.gguf_header import read_header
from iconoclast_tl.models.gguf_rope import set_rope
from iconoclast_tl.models.load import load_model
from iconoclast_tl.models.source import hub_id, is_gguf, short_name
from iconoclast_tl.models.stored import digest_of, skeleton
from iconoclast_tl.prompts.prompt import Prompt
from tests.edits.edits import random_edit
from tests.models.gguf_files import TEMPLATE, WIDTHS, save_gguf, tiny, words

IDS = torch.randint(4, 260, (2, 12), generator=torch.Generator().manual_seed(0))
EVIL = "\x1b[31mevil\x07\n# heading <script>"


def load(path: Path, dtype: str = "float32", **settings: Any) -> Any:
    return load_model(str(path), device="cpu", dtype=dtype, **settings)


def logits(hf: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = hf(IDS).logits.float()
    return found


@pytest.mark.parametrize("stored", ["Q8_0", "Q4_1", "BF16", "F16", "F32"])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_it_computes_what_its_dequantised_weights_compute(tmp_path: Path, kind: str, stored: str) -> None:
    before = tiny(kind)
    hf = tiny(kind)
    model = load(save_gguf(tmp_path / "tiny.gguf", hf, stored))
    assert torch.equal(logits(model.hf), logits(hf))
    assert model.hf.dtype == torch.float32
    assert stored == "F32" or not torch.equal(logits(model.hf), logits(before))  # they were quantised


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_of_its_own_is_read_and_a_shared_one_shared(tmp_path: Path, tied: bool) -> None:
    hf = tiny(tie_word_embeddings=tied)
    model = load(save_gguf(tmp_path / "tiny.gguf", hf))
    assert torch.equal(logits(model.hf), logits(hf))
    assert (model.hf.lm_head.weight is model.hf.model.embed_tokens.weight) == tied


def test_bfloat16_is_given_if_asked_for(tmp_path: Path) -> None:
    hf = tiny()
    model = load(save_gguf(tmp_path / "tiny.gguf", hf), "bfloat16")
    assert {parameter.dtype for parameter in model.hf.parameters()} == {torch.bfloat16}
    for parameter in hf.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    assert torch.equal(logits(model.hf), logits(hf))


def test_tokenizer_and_template_come_with_it(tmp_path: Path) -> None:
    model = load(save_gguf(tmp_path / "tiny.gguf", tiny()))
    assert model.tokenizer.padding_side == "left"
    assert model.chat.render(Prompt("hi")) == "<bos>user:hi assistant:"
    rows = model.chat.encode(Prompt("hello a b"))
    assert rows[0] == 1
    assert words().index("he") in rows  # the merges hold
    assert words().index("Ġa") in rows
    assert model.tokenizer.decode(rows, skip_special_tokens=True) == "user:hello a b assistant:"


def test_what_lies_beside_the_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of another model in its folder, and a file of the same name in the working folder."""
    hf = tiny()
    place = save_gguf(tmp_path / "tiny.gguf", hf)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "chat_template": "other"}')
    (tmp_path / "chat_template.jinja").write_text("other")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    save_gguf(Path("tiny.gguf"), tiny(seed=1))
    model = load(place)
    assert torch.equal(logits(model.hf), logits(hf))
    assert model.tokenizer.chat_template == TEMPLATE
    assert not torch.equal(logits(load(Path("tiny.gguf")).hf), logits(hf))


def test_a_file_of_any_name_is_known_by_how_it_begins(tmp_path: Path) -> None:
    """As Ollama keeps them."""
    hf = tiny()
    place = save_gguf(tmp_path / "sha256-0123", hf)
    assert torch.equal(logits(load(place).hf), logits(hf))


def test_it_is_parsed_once_and_computes_the_same_without_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gguf

    place = save_gguf(tmp_path / "tiny.gguf", tiny())
    parsed = []
    reader = gguf.GGUFReader
    monkeypatch.setattr(gguf, "GGUFReader", lambda path, *rest: parsed.append(path) or reader(path, *rest))
    quick = load(place)
    assert not parsed
    monkeypatch.setattr(gguf_parsed, "_Reader", lambda header: reader(header.path))
    slow = load(place)
    assert quick.fingerprint == slow.fingerprint
    assert torch.equal(logits(quick.hf), logits(slow.hf))


def test_nothing_of_gguf_is_left_in_the_library(tmp_path: Path) -> None:
    import gguf

    before = gguf.GGUFReader, gguf.get_tensor_name_map
    load(save_gguf(tmp_path / "tiny.gguf", tiny()))
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before


# An ordinary model ----------------------------------------------------------------------------------------------------


def test_it_is_an_ordinary_model_afterwards(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = load(save_gguf(tmp_path / "tiny.gguf", tiny()))
    assert model.quantization == "none"
    assert not getattr(model.hf.config, "quantization_config", None)
    assert getattr(model.hf, "hf_quantizer", None) is None
    model.hf.save_pretrained(str(tmp_path / "saved"))
    model.tokenizer.save_pretrained(str(tmp_path / "saved"))
    again = AutoModelForCausalLM.from_pretrained(str(tmp_path / "saved"))
    assert torch.equal(logits(again), logits(model.hf))
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path / "saved"))
    assert tokenizer("hello a b").input_ids == model.tokenizer("hello a b").input_ids
    assert tokenizer.chat_template == TEMPLATE
    assert load(tmp_path / "saved").fingerprint == model.fingerprint


def test_transformer_lens_computes_the_same(tmp_path: Path) -> None:
    model = load(save_gguf(tmp_path / "tiny.gguf", tiny()))
    assert torch.allclose(model.bridge()(IDS, return_type="logits"), logits(model.hf), atol=1e-4)


def test_a_fold_becomes_a_folder_that_transformers_loads_alone(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from iconoclast_tl.edits.hooks import preview

    model = load(save_gguf(tmp_path / "tiny.gguf", tiny()))
    edit = random_edit(d_model=64)
    planned_merge(fold(edit, model)).write(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(str(tmp_path / "merged"))
    with preview(edit, model.sites):
        shown = logits(model.hf)
    assert torch.allclose(logits(merged), shown, atol=1e-4)
    assert not torch.allclose(logits(merged), logits(model.hf), atol=1e-2)
    assert AutoTokenizer.from_pretrained(str(tmp_path / "merged")).chat_template == TEMPLATE


@pytest.mark.parametrize("saved", [True, False])
def test_the_doctor_folds_it(tmp_path: Path, saved: bool) -> None:
    model = load(save_gguf(tmp_path / "tiny.gguf", tiny()))
    plain = next(kind for kind in KINDS if kind.name == "plain")
    check = fold_check(model, random_rows(model), plain, saved)
    assert check.ok
    assert check.note == ""


def test_an_adapter_names_the_file_and_the_file_is_loaded_by_the_adapters_name(tmp_path: Path) -> None:
    place = save_gguf(tmp_path / "tiny.gguf", tiny())
    model = load(place)
    fold(random_edit(d_model=64), model).save(tmp_path / "adapter")
    about = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert about["base_model_name_or_path"] == str(place)
    assert load(tmp_path / "adapter").fingerprint == model.fingerprint


def test_what_the_metadata_calls_the_model_reaches_nothing(tmp_path: Path) -> None:
    keys = ("name", "author", "url", "description", "basename", "organization", "license", "finetune")
    changes = {f"general.{key}": EVIL for key in keys}
    model = load(save_gguf(tmp_path / "tiny.gguf", tiny(), changes=changes))
    made = fold(random_edit(d_model=64), model)
    made.save(tmp_path / "out" / "adapter")
    made.merge(tmp_path / "out" / "merged")
    written = b"".join(file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file())
    assert b"evil" not in written
    assert b"evil" not in repr((model, model.name, model.notes)).encode()
    assert b"tiny.gguf" in written  # the user's own name for it


def test_a_template_that_reaches_for_python_is_stopped(tmp_path: Path) -> None:
    """transformers renders templates in a sandbox; whatever stops one is the user's line."""
    for template in (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ 1 / 0 }}",
        "{{ messages[9]['content'] + 1 }}",
        "{% for",
    ):
        model = load(save_gguf(tmp_path / "tiny.gguf", tiny(), template=template))
        with pytest.raises(UserError, match="this model's chat template does not render a prompt"):
            model.chat.render(Prompt("hi"))


# Positions ------------------------------------------------------------------------------------------------------------

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def llama3_factors(factor: float, width: int, theta: float = 10000.0) -> NDArray[Any]:
    """As llama.cpp's converter writes them."""
    found = []
    for frequency in theta ** (-np.arange(0, width, 2) / width):
        wave = 2 * np.pi / frequency
        smooth = (8192 / wave - 1) / (4 - 1)
        found.append(1.0 if wave < 8192 / 4 else factor if wave > 8192 else 1 / ((1 - smooth) / factor + smooth))
    return np.array(found, np.float32)


def far(hf: Any) -> torch.Tensor:
    """Logits at positions where the stretching shows."""
    with torch.no_grad():
        found: torch.Tensor = hf(IDS, position_ids=torch.arange(0, 6000, 500)[None]).logits
    return found


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_stretched_positions_of_llama_3_are_found_by_what_they_compute(tmp_path: Path, factor: float) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": factor, **LLAMA3}
    hf = tiny(rope_parameters=rope)
    factors = {"rope_freqs.weight": llama3_factors(factor, 16)}
    model = load(save_gguf(tmp_path / "tiny.gguf", hf, extra=factors))
    assert torch.allclose(far(model.hf), far(hf), atol=1e-5)
    assert model.hf.config.rope_parameters == rope
    plain = load(save_gguf(tmp_path / "plain.gguf", tiny()))
    assert not torch.allclose(far(plain.hf), far(hf), atol=1e-2)


def test_a_linear_stretching_is_read(tmp_path: Path) -> None:
    hf = tiny(rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 8.0})
    said = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 8.0}
    model = load(save_gguf(tmp_path / "tiny.gguf", hf, changes=said))
    assert torch.allclose(far(model.hf), far(hf), atol=1e-5)


def test_gemmas_stretching_is_that_of_the_layers_that_attend_to_everything(tmp_path: Path) -> None:
    from transformers import Gemma3TextConfig

    said = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 8.0}
    header = read_header(save_gguf(tmp_path / "tiny.gguf", tiny(), changes=said))
    config = Gemma3TextConfig()
    before = copy.deepcopy(config.rope_parameters)
    set_rope(config, header)
    full, sliding = config.rope_parameters["full_attention"], config.rope_parameters["sliding_attention"]
    assert full == {**before["full_attention"], "rope_type": "linear", "factor": 8.0}
    assert sliding == before["sliding_attention"]


def test_factors_of_one_are_none_and_others_are_refused(tmp_path: Path) -> None:
    ones = np.ones(8, np.float32)
    hf = tiny()
    model = load(save_gguf(tmp_path / "tiny.gguf", hf, extra={"rope_freqs.weight": ones}))
    assert torch.equal(logits(model.hf), logits(hf))
    for values in (np.linspace(1, 9, 8, dtype=np.float32), np.full(5, 8, np.float32)):
        save_gguf(tmp_path / "tiny.gguf", tiny(), extra={"rope_freqs.weight": values})
        with pytest.raises(UserError, match=r"stretches its positions .* got rope_freqs.weight"):
            load(tmp_path / "tiny.gguf")
    save_gguf(tmp_path / "tiny.gguf", tiny(), changes={"llama.rope.scaling.type": "yarn"})
    with pytest.raises(UserError, match=r"stretches its positions .* got rope.scaling.type 'yarn'"):
        load(tmp_path / "tiny.gguf")


# Names ----------------------------------------------------------------------------------------------------------------


def test_names_of_files_here_and_on_the_hub(tmp_path: Path) -> None:
    assert is_gguf("owner/name:a/b.Q4_K_M.gguf")
    assert not is_gguf("owner/name")
    assert short_name("owner/name:a/b.Q4_K_M.gguf") == "b.Q4_K_M"
    assert short_name("owner/name:b.gguf") == "b"
    assert short_name("owner/name") == "name"
    assert hub_id("owner/name:b.gguf") == "owner/name"
    assert hub_id("owner/name") == "owner/name"
    place = save_gguf(tmp_path / "tiny.Q8_0.gguf", tiny())
    assert short_name(str(place)) == "tiny.Q8_0"
    assert hub_id(str(place)) == str(place)


def test_a_file_of_the_hub_is_had_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = {"main": "a" * 40, "old": "b" * 40}
    repository = tmp_path / "hub" / "models--owner--name"
    for seed, (revision, commit) in enumerate(commits.items()):
        (repository / "snapshots" / commit / "sub").mkdir(parents=True)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
        save_gguf(repository / "snapshots" / commit / "sub" / "tiny.gguf", tiny(seed=seed))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    name = "owner/name:sub/tiny.gguf"
    model, old = load_model(name, device="cpu"), load_model(name, device="cpu", revision="old")
    assert model.name == name
    assert (model.hf.config._commit_hash, old.hf.config._commit_hash) == (commits["main"], commits["old"])
    assert model.fingerprint != old.fingerprint
    assert digest_of(name, commits["old"]) != digest_of(name, commits["main"])
    assert model.notes[0].startswith("tiny: weights stored as F32, Q8_0")
    with pytest.raises(UserError, match=r"cannot have the GGUF file owner/name:other.gguf"):
        load_model("owner/name:other.gguf", device="cpu")
    with pytest.raises(UserError, match=r"there is no GGUF file owner/name:../../tiny.gguf"):
        load_model("owner/name:../../tiny.gguf", device="cpu")


def test_the_digest_knows_the_file_again(tmp_path: Path) -> None:
    place = save_gguf(tmp_path / "tiny.gguf", tiny())
    digest = digest_of(str(place))
    shutil.copy(place, tmp_path / "copy.gguf")
    assert digest_of(str(tmp_path / "copy.gguf")) == digest
    assert digest_of(str(save_gguf(tmp_path / "other.gguf", tiny(seed=1)))) != digest
    assert digest_of("owner/name") is None


def test_the_skeleton_is_that_of_the_file(tmp_path: Path) -> None:
    place = save_gguf(tmp_path / "tiny.gguf", tiny())
    bare = skeleton(str(place), ModelConfig(name=str(place)))
    assert {parameter.device.type for parameter in bare.parameters()} == {"meta"}
    assert list(bare.state_dict()) == list(load(place).hf.state_dict())
    assert bare.config.hidden_size == WIDTHS["hidden_size"]
