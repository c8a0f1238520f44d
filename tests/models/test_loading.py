"""Loading: dtypes, fingerprints, and what a forward pass is given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from iconoclast_tl.folding.fold import fold
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models import load as loading
from iconoclast_tl.models.config import ModelConfig
from iconoclast_tl.models.fingerprint import _identity, fingerprint_of
from iconoclast_tl.models.load import load_model
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.tokens import left_pad
from tests.conftest import save_llama
from tests.edits.edits import random_edit


def test_auto_is_float32_on_a_cpu_and_parameters_take_no_gradient(llama_folder: Path) -> None:
    model = load_model(ModelConfig(name=str(llama_folder), device="cpu"))
    assert model.hf.dtype == torch.float32
    assert not model.hf.training
    assert not any(p.requires_grad for p in model.hf.parameters())


def test_the_fingerprint_names_the_weights(tmp_path: Path, llama_folder: Path, load: Callable[..., Model]) -> None:
    model = load(llama_folder)
    assert model.fingerprint == load(llama_folder).fingerprint
    assert model.fingerprint != load(save_llama(tmp_path, seed=1)).fingerprint
    with torch.no_grad():
        model.hf.model.layers[1].mlp.down_proj.weight[0, 0] += 1e-3
    assert fingerprint_of(model.hf) != load(llama_folder).fingerprint


def test_a_dtype_that_gives_no_finite_logits_is_given_up_with_a_note(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_dtype_chain", lambda config, device: ["float16", "float32"])
    finite = loading._gives_finite_logits
    monkeypatch.setattr(loading, "_gives_finite_logits", lambda hf: hf.dtype != torch.float16 and finite(hf))
    model = load_model(ModelConfig(name=str(llama_folder), device="cpu"))
    assert model.dtype == "float32"
    assert "float16" in model.notes[0]


def test_a_missing_device_is_the_users_line(llama_folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(UserError, match="there is no device cuda: want one of auto, cpu"):
        load_model(ModelConfig(name=str(llama_folder), device="cuda"))


@pytest.mark.parametrize("name", ["meta", "nonsense", "cuda:99", "cpu:1", "disk", ""])
@pytest.mark.parametrize("option", ["device", "device_map"])
def test_what_is_no_device_for_a_model_is_the_users_line(llama_folder: Path, name: str, option: str) -> None:
    with pytest.raises(UserError, match=f"there is no device {name}: want one of auto, cpu"):
        load_model(ModelConfig(name=str(llama_folder), **{"device": "cpu", option: name}))


def test_a_device_map_may_be_a_placement_or_a_device(llama_folder: Path) -> None:
    for device_map in ("auto", "cpu"):
        model = load_model(ModelConfig(name=str(llama_folder), device="cpu", device_map=device_map, dtype="float32"))
        assert model.fingerprint == load_model(ModelConfig(name=str(llama_folder), device="cpu")).fingerprint


def test_padding_on_the_left_changes_no_logit(llama: Model, rows: list[list[int]]) -> None:
    """Float32 rounding only: attention sums over other widths. Without position ids rotary angles would shift too."""
    batch = left_pad(rows, llama.pad_id)
    with torch.no_grad():
        together = llama.hf(**llama.inputs(batch)).logits[:, -1]
        alone = torch.stack([llama.hf(torch.tensor([row])).logits[0, -1] for row in rows])
        blind = llama.hf(batch.input_ids).logits[:, -1]
    assert torch.allclose(together, alone, atol=1e-5)
    assert not torch.allclose(blind, alone, atol=1e-2)  # the mask matters


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_quantised_models_are_collected_through_hugging_face_modules(llama_folder: Path, quantization: Any) -> None:
    from iconoclast_tl.models.twin import Parity, make_twin

    model = load_model(ModelConfig(name=str(llama_folder), device="cpu", quantization=quantization))
    assert any(quantization in type(module).__name__.lower() for module in model.hf.modules())
    found = make_twin(model)
    assert isinstance(found, Parity)
    assert "quantised" in found.reason


def test_four_bit_weights_are_computed_with_as_they_are_stored_on_every_cpu(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here on one that bitsandbytes takes for one with AVX512-BF16, where it would pack them anew."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    model = load_model(ModelConfig(name=str(llama_folder), device="cpu", quantization="4bit"))
    packed = [module.support_avx512bf16_for_cpu for module in model.hf.modules() if "4bit" in type(module).__name__]
    assert packed
    assert not any(packed)


def test_the_fingerprint_does_not_say_in_which_dtype_the_weights_are_held(
    tmp_path: Path, load: Callable[..., Model]
) -> None:
    """Weights that bfloat16 holds exactly are the same weights in float32, whatever their configuration says."""
    from transformers import AutoModelForCausalLM

    rounded = AutoModelForCausalLM.from_pretrained(str(save_llama(tmp_path / "a")), dtype=torch.bfloat16)
    rounded.save_pretrained(str(tmp_path / "a"))
    fingerprints = {load(tmp_path / "a", dtype).fingerprint for dtype in ("float32", "bfloat16")}
    assert len(fingerprints) == 1
    other = {load(save_llama(tmp_path / "b", rms_norm_eps=1e-5)).fingerprint}  # what does count stays counted
    assert not other & {load(save_llama(tmp_path / "c")).fingerprint}


def test_what_a_configuration_holds_of_dtypes_is_left_out_at_any_depth() -> None:
    kept = {"hidden_size": 8, "id2label": {0: "a"}, "text_config": {"layers": 2}}
    config = {**kept, "dtype": "float16", "_name_or_path": "x", "quantization_config": {"bits": 4}}
    config["text_config"] = {"layers": 2, "torch_dtype": "float16", "_commit": "y"}
    assert _identity(config) == {**kept, "id2label": {"0": "a"}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 5, "head_dim": None}, "hidden size .24. is not a multiple of the number of attention"),
        ({"num_hidden_layers": "many"}, "'num_hidden_layers' expected int, got str"),
        ({"hidden_act": "nonesuch"}, "nonesuch"),
    ],
)
def test_a_configuration_that_contradicts_itself_is_the_users_line(
    tmp_path: Path, load: Callable[..., Model], changes: dict[str, Any], message: str
) -> None:
    _configure(save_llama(tmp_path), **changes)
    with pytest.raises(UserError, match=f"cannot load the model.*{message}"):
        load(tmp_path)


def test_weights_of_layers_that_the_configuration_does_not_have_are_the_users_line(
    tmp_path: Path, load: Callable[..., Model]
) -> None:
    _configure(save_llama(tmp_path), num_hidden_layers=2)
    with pytest.raises(UserError, match=r"no place for: got 9 left over, first model\.layers\.2\..*2 layers"):
        load(tmp_path)
    _configure(tmp_path, num_hidden_layers=3)
    assert load(tmp_path).n_layers == 3


def test_weights_beside_the_layers_and_old_buffers_do_no_harm(tmp_path: Path, load: Callable[..., Model]) -> None:
    """As in checkpoints with another head, a vision tower or the buffers of an older transformers."""
    save_llama(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    harmless = ("model.layers.0.self_attn.rotary_emb.inv_freq", "score.weight", "vision.encoder.layers.7.mlp.weight")
    save_file(weights | {name: torch.ones(2) for name in harmless}, tmp_path / "model.safetensors", {"format": "pt"})
    load(tmp_path)
    # The negative control: a bias that the configuration does not know would be dropped without a word.
    bias = {"model.layers.0.self_attn.o_proj.bias": torch.ones(24)}
    save_file(weights | bias, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="got 1 left over"):
        load(tmp_path)


@pytest.mark.parametrize("absent", [("pad_token",), ("pad_token", "eos_token")])
def test_a_tokenizer_without_padding_stays_as_it_is(
    tmp_path: Path, load: Callable[..., Model], rows: list[list[int]], absent: tuple[str, ...]
) -> None:
    from transformers import AutoTokenizer

    from iconoclast_tl.models.twin import Twin, make_twin

    tokenizer = AutoTokenizer.from_pretrained(str(save_llama(tmp_path)))
    for name in absent:
        setattr(tokenizer, name, None)
    tokenizer.save_pretrained(str(tmp_path))
    model = load(tmp_path)
    assert model.pad_id == (2 if "eos_token" not in absent else 0)
    assert isinstance(make_twin(model), Twin)
    assert model.tokenizer.pad_token is None
    assert model.tokenizer.special_tokens_map == tokenizer.special_tokens_map
    batch = left_pad(rows, model.pad_id)
    with torch.no_grad():
        together = model.hf(**model.inputs(batch)).logits[:, -1]
        alone = torch.stack([model.hf(torch.tensor([row])).logits[0, -1] for row in rows])
    assert torch.allclose(together, alone, atol=1e-5)


def _configure(folder: Path, **changes: Any) -> None:
    """Change entries of config.json; None takes one out."""
    config = json.loads((folder / "config.json").read_text()) | changes
    written = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(written))


def test_an_adapter_is_its_base_and_says_so(llama: Model, tmp_path: Path, load: Callable[..., Model]) -> None:
    fold(random_edit(), llama).save(tmp_path / "adapter")
    found = load(tmp_path / "adapter")
    assert found.fingerprint == llama.fingerprint
    assert found.name == llama.name
    assert found.notes == (f"{tmp_path / 'adapter'} is an adapter; this is its base, {llama.name}, without it",)


def test_shards_that_hold_what_their_index_names_are_loaded(
    llama: Model, tmp_path: Path, load: Callable[..., Model]
) -> None:
    llama.hf.save_pretrained(tmp_path, max_shard_size="10KB")
    llama.tokenizer.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert load(tmp_path).fingerprint == llama.fingerprint
