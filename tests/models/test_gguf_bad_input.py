"""GGUF files that cannot be trusted: each is one line of the user's, before memory is taken for what they claim."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.gguf_header import read_header
from iconoclast_tl.models.load import load_model
from tests.models.gguf_files import claim_shape, claim_type, save_gguf, tiny, words

Q_WEIGHT = "blk.0.attn_q.weight"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "tiny.gguf"


@pytest.fixture
def nothing_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test fails if transformers is asked for weights."""
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *args, **kwargs: pytest.fail("it loads"))


def refused(place: Path, message: str, **settings: Any) -> str:
    with pytest.raises(UserError, match=message) as caught:
        load_model(str(place), device="cpu", **settings)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    assert len(line) < 700
    assert line.isprintable()
    return line


# What the file is -----------------------------------------------------------------------------------------------------


def test_an_architecture_that_transformers_does_not_read(place: Path) -> None:
    save_gguf(place, tiny(), architecture="rwkv7")
    line = refused(place, "transformers does not read GGUF files of the architecture 'rwkv7': want one of ")
    assert all(name in line for name in ("llama", "qwen2moe", "gemma3", "gpt-oss", "lfm2"))
    assert "t5" not in line


def test_an_architecture_with_a_terminals_commands_in_its_name(place: Path) -> None:
    save_gguf(place, tiny(), architecture="\x1b[2Jllama" + "x" * 10_000)
    assert "\x1b" not in refused(place, "does not read GGUF files of the architecture")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.type": "adapter"}, "is no model: got general.type 'adapter'"),
        ({"split.count": 3, "split.no": 0}, "is one of 3 parts of a model.*llama-gguf-split --merge"),
        ({"tokenizer.ggml.tokens": None}, "has no tokenizer: got no tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.model": "bert"}, "cannot load the model .*: got .*tokenizer 'bert'"),
        ({"tokenizer.ggml.merges": ["he"]}, "cannot load the model"),
        ({"tokenizer.ggml.merges": ["q q"]}, "cannot load the model"),
    ],
)
def test_what_it_holds_is_no_chat_model_in_one_file(place: Path, changes: dict[str, Any], message: str) -> None:
    save_gguf(place, tiny(), changes=changes)
    refused(place, message)


def test_one_part_of_several_by_its_name(tmp_path: Path) -> None:
    save_gguf(tmp_path / "m-00001-of-00003.gguf", tiny())
    refused(tmp_path / "m-00001-of-00003.gguf", "is one of 3 parts of a model")


def test_without_a_chat_template_it_loads_and_says_how_to_go_on(place: Path) -> None:
    save_gguf(place, tiny(), template=None)
    model = load_model(str(place), device="cpu")
    with pytest.raises(UserError, match=r"this model has no chat template.*--raw-prompts"):
        _ = model.chat
    assert load_model(str(place), device="cpu", raw_prompts=True).generate("hi", 2) is not None


@pytest.mark.parametrize("name", ["nowhere.gguf", "./nowhere.gguf", "owner/name/nowhere.gguf"])
def test_a_file_that_is_not_there(name: str) -> None:
    refused(Path(name), "there is no GGUF file .*nowhere.gguf: want a file, or owner/name:FILE.gguf")


def test_a_folder_of_gguf_files_says_which_there_are(tmp_path: Path) -> None:
    for name in ("b.Q8_0.gguf", "a.Q4_1.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    refused(tmp_path, r"is a folder of GGUF files: got a.Q4_1.gguf, b.Q8_0.gguf; want one of them; pass .*a.Q4_1.gguf")


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_quantising_it_anew_is_refused(place: Path, quantization: str) -> None:
    save_gguf(place, tiny())
    refused(place, f"cannot be quantised anew: got quantization {quantization}", quantization=quantization)


def test_a_format_that_cannot_be_dequantised(place: Path, nothing_allocated: None) -> None:
    save_gguf(place, tiny(), "F32")
    claim_type(place, Q_WEIGHT, 28, 2)  # F64
    claim_shape(place, Q_WEIGHT, (64, 32))
    refused(place, "holds weights that cannot be dequantised: got F64, such as 'blk.0.attn_q.weight'")
    claim_type(place, Q_WEIGHT, 4_000, 2)
    refused(place, "quantised in a way that gguf does not know: got type 4000")


# Damage ---------------------------------------------------------------------------------------------------------------


def test_what_is_no_gguf_file(place: Path) -> None:
    for content in (b"", b"GG", b"PK\x03\x04 zip", b"GGML" + b"\0" * 64, b"GGUF", b"GGUF" + struct.pack("<I", 3)):
        place.write_bytes(content)
        refused(place, "is not a GGUF file|is cut off|cannot read")
    save_gguf(place, tiny())
    for version in (1, 4, 3 << 24):  # 3 of the other byte order
        content = bytearray(place.read_bytes())
        struct.pack_into("<I", content, 4, version)
        place.write_bytes(content)
        refused(place, f"is of a GGUF version that is not read: got {version}")


def test_wherever_it_is_cut_off_it_is_refused(place: Path, nothing_allocated: None) -> None:
    save_gguf(place, tiny())
    whole = place.read_bytes()
    whole = whole[: max(one.offset + one.n_bytes for one in read_header(place).tensors)]
    for end in [*range(0, 200, 13), *range(200, len(whole), len(whole) // 60), len(whole) - 1]:
        place.write_bytes(whole[:end])
        refused(place, "is cut off|is damaged|is not a GGUF file|cannot read")
    place.write_bytes(whole)
    assert len(read_header(place).tensors) == len(tiny().state_dict())


@pytest.mark.parametrize("claimed", [2**20 + 1, 2**40, 2**64 - 1])
@pytest.mark.parametrize("place_of_count", [8, 16])
def test_counts_beyond_the_file(place: Path, claimed: int, place_of_count: int) -> None:
    save_gguf(place, tiny())
    content = bytearray(place.read_bytes())
    struct.pack_into("<Q", content, place_of_count, claimed)
    place.write_bytes(content)
    refused(place, f"is damaged: got {claimed} (keys|tensors) in")


@pytest.mark.parametrize("key", ["tokenizer.ggml.tokens", "tokenizer.ggml.token_type"])
@pytest.mark.parametrize("claimed", [2**32, 2**62])
def test_arrays_beyond_the_file(place: Path, key: str, claimed: int) -> None:
    save_gguf(place, tiny())
    content = bytearray(place.read_bytes())
    struct.pack_into("<Q", content, content.index(key.encode()) + len(key) + 8, claimed)
    place.write_bytes(content)
    refused(place, "is damaged|is cut off")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2**40, 64), "is cut off: got .* bytes; want .*, by its own header"),
        ((2**63, 2**63), "is cut off"),
        ((2**32, 2**32), "is cut off"),  # whose product is 0 in 64 bits
        ((0, 64), "of shape .64, 0."),
        ((33, 64), "of shape .64, 33. in blocks of 32"),
        ((64, 128), "in the place of another tensor"),
    ],
)
def test_shapes_that_the_file_does_not_hold(
    place: Path, shape: tuple[int, ...], message: str, nothing_allocated: None
) -> None:
    save_gguf(place, tiny())
    claim_shape(place, Q_WEIGHT, shape)
    refused(place, message)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_changed_in_the_header_end_in_a_line_or_in_a_header(place: Path, data: st.DataObject) -> None:
    if not (whole := place.with_suffix(".whole")).exists():
        save_gguf(whole, tiny())
    content = bytearray(whole.read_bytes())
    end = min(one.offset for one in read_header(whole).tensors)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(4, end - 1))] = data.draw(st.integers(0, 255))
    place.write_bytes(content)
    try:
        header = read_header(place)
    except UserError:
        return
    assert all(one.offset + one.n_bytes <= len(content) for one in header.tensors)


# Metadata that lies ---------------------------------------------------------------------------------------------------

LIES: dict[str, tuple[dict[str, Any], str]] = {
    "more layers": ({"llama.block_count": 4}, "contradicts itself: got tensors of 3 layers; want 4, by its metadata"),
    "a billion layers": ({"llama.block_count": 10**9}, "got tensors of 3 layers; want 1000000000"),
    "fewer layers": ({"llama.block_count": 2}, "got tensors of 3 layers; want 2"),
    "no number of layers": ({"llama.block_count": None}, "got tensors of 3 layers; want None"),
    "a negative number of layers": ({"llama.block_count": -1}, "got tensors of 3 layers; want -1"),
    "wider": (
        {"llama.embedding_length": 128},
        "contradicts itself: got tensors of .* weights; want .*, by its metadata",
    ),
    "narrower": ({"llama.embedding_length": 32}, "holds tensors that transformers has no place for"),
    "far wider": ({"llama.embedding_length": 2**30}, "got llama.embedding_length 1073741824; want at most 262"),
    "a wider MLP": ({"llama.feed_forward_length": 128}, "contradicts itself: got tensors of .* weights"),
    "a far wider MLP": ({"llama.feed_forward_length": 2**40}, "got llama.feed_forward_length"),
    "no width": ({"llama.embedding_length": 0}, "cannot load the model|no place for"),
    "no heads": ({"llama.attention.head_count": 0}, "cannot load the model"),
    "a billion heads": ({"llama.attention.head_count": 10**9}, "got llama.attention.head_count 1000000000"),
    "more keys": ({"llama.attention.head_count_kv": 4}, "contradicts itself: got tensors of .* weights"),
    "fewer keys": ({"llama.attention.head_count_kv": 1}, "no place for"),
    "wider heads": ({"llama.rope.dimension_count": 32}, "contradicts itself"),
    "other heads of the same sum": (
        {"llama.attention.head_count": 2, "llama.rope.dimension_count": 32, "llama.attention.head_count_kv": 2},
        "contradicts itself",
    ),
    "more words than rows": (
        {"tokenizer.ggml.tokens": [*words(), "more"]},
        "got a tokenizer of 263 tokens; want at most 262",
    ),
    "a larger vocabulary": ({"llama.vocab_size": 2**31}, "got llama.vocab_size 2147483648; want at most 262"),
    "a smaller vocabulary": ({"llama.vocab_size": 200}, "no place for"),
    "a token out of the vocabulary": ({"tokenizer.ggml.eos_token_id": 262}, "got eos token 262; want 0 to 261"),
    "a negative token": ({"tokenizer.ggml.padding_token_id": -1}, "got padding token -1"),
    "a context of none": ({"llama.context_length": 0}, "a context of 0 tokens"),
    "an endless context": ({"llama.context_length": 2**40}, "a context of 1099511627776 tokens"),
    "no rotary base": ({"llama.rope.freq_base": 0.0}, "got llama.rope.freq_base 0.0; want more than 0"),
    "nothing for a norm": (
        {"llama.attention.layer_norm_rms_epsilon": None},
        "got no llama.attention.layer_norm_rms_ep",
    ),
    "nothing for the heads": ({"llama.attention.head_count": None}, "got no llama.attention.head_count"),
    "text for a number": ({"llama.embedding_length": "\x1b[2Jwide"}, "cannot load the model|contradicts itself"),
    "numbers for a name": ({"tokenizer.ggml.model": 7}, "cannot load the model"),
}


@pytest.mark.parametrize("lie", LIES)
def test_metadata_that_contradicts_the_tensors(place: Path, lie: str, nothing_allocated: None) -> None:
    changes, message = LIES[lie]
    save_gguf(place, tiny(), changes=changes)
    refused(place, message)


def test_the_same_file_without_a_lie_loads(place: Path) -> None:
    """The negative control."""
    save_gguf(place, tiny(), changes={})
    assert load_model(str(place), device="cpu").n_layers == 3


def test_sums_that_agree_while_shapes_do_not(place: Path) -> None:
    """As many weights as asked for: told once transformers has put them side by side."""
    hf = tiny(hidden_size=64, intermediate_size=64)
    save_gguf(place, hf)
    claim_shape(place, "blk.0.ffn_gate.weight", (32, 128))
    refused(place, r"contradicts itself: got .*gate_proj.weight of shape .128, 32.; want .64, 64., by its metadata")


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        ("blk.1.ffn_down", "contradicts itself: got tensors of .* weights; want .*, by its metadata"),
        ("blk.1.", "got tensors of 2 layers; want 3"),
        ("output_norm", "contradicts itself"),
        ("token_embd", "got a tokenizer of 262 tokens; want at most 0"),
    ],
)
def test_weights_that_are_missing_are_never_made_up(
    place: Path, left_out: str, message: str, nothing_allocated: None
) -> None:
    save_gguf(place, tiny(), left_out=left_out)
    refused(place, message)


def test_weights_in_another_ones_name_are_never_made_up(place: Path) -> None:
    """The sum is right and nothing of that name is there."""
    hf = tiny()
    swapped = {"blk.1.ffn_other.weight": hf.model.layers[1].mlp.down_proj.weight.detach().numpy()}
    save_gguf(place, hf, left_out="blk.1.ffn_down", extra=swapped)
    refused(place, "lacks weights that its metadata asks for: got 1 missing, first model.layers.1.mlp.down_proj.weight")


def test_weights_that_transformers_would_drop_are_told(place: Path, nothing_allocated: None) -> None:
    """A Llama with biases: its configuration does not come out of a GGUF file with them."""
    bias = {"blk.0.attn_q.bias": np.ones(64, np.float32)}
    save_gguf(place, tiny(), extra=bias)
    refused(place, "no place for: got more weights than a llama model has, such as 'blk.0.attn_q.bias'")


def test_numbers_that_are_not_finite(place: Path) -> None:
    save_gguf(place, tiny(), changes={"llama.attention.layer_norm_rms_epsilon": float("nan")})
    refused(place, "gives values that are not finite")


def test_what_claims_much_takes_no_memory(place: Path) -> None:
    """Peak of the process while a file of 200 KB claims terabytes in every way above."""
    import resource

    cases: list[Callable[[], Any]] = [
        lambda: save_gguf(place, tiny(), changes={"llama.block_count": 2**31 - 1}),
        lambda: save_gguf(place, tiny(), changes={"llama.embedding_length": 2**40}),
        lambda: save_gguf(place, tiny(), changes={"llama.vocab_size": 2**40}),
        lambda: claim_shape(save_gguf(place, tiny()), Q_WEIGHT, (2**45, 64)),
    ]
    load_model(str(save_gguf(place, tiny())), device="cpu")  # libraries are in memory
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for make in cases:
        make()
        refused(place, "contradicts itself|is cut off")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def test_an_unfinished_download_leaves_the_device_alone(place: Path) -> None:
    save_gguf(place, tiny())
    place.write_bytes(place.read_bytes()[:-100])
    before = torch.get_default_dtype()
    refused(place, "is cut off")
    assert torch.get_default_dtype() == before
