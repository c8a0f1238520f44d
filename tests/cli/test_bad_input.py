"""A user's mistake: one line that starts with `error: `, exit 2, and nothing written."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.conftest import CONTEXT, Cli, content

OUT = Path("deep/run")
Case = Callable[[Path, Path], list[object]]


def fails(cli: Cli, arguments: list[object], message: str, out: Path = OUT) -> str:
    """Run a command that must end as a user's mistake and leave `out` as it was."""
    before = content(out)
    parents = [place.exists() for place in out.parents]
    done = cli(*arguments, "--out", out)
    assert done.code == 2, done
    assert message in done.error
    assert done.out == ""
    assert content(out) == before
    assert [place.exists() for place in out.parents] == parents
    assert not list(Path.cwd().glob(".*"))
    return done.error


def test_the_same_command_without_a_mistake_writes(cli: Cli, common: list[str]) -> None:
    """The negative control of this file."""
    done = cli("collect", *common, "--out", OUT)
    assert (done.code, done.err) == (0, "")
    assert set(content(OUT)) == {"manifest.json", "activations.safetensors", ".lock"}
    with pytest.raises(AssertionError):
        fails(cli, ["collect", *common], "")


# Prompts --------------------------------------------------------------------------------------------------------------

PROMPTS: dict[str, tuple[bytes | None, str, str]] = {
    "missing.txt": (None, "", "there is no prompt file"),
    "missing.jsonl": (None, "#text", "there is no prompt file"),
    "empty.txt": (b"", "", "is empty: got 0 prompts"),
    "empty.csv": (b"prompt\n", "", "is empty: got 0 prompts"),
    "column.csv": (b"prompt\na\nb\nc\n", "#question", "has no column 'question': want one of prompt"),
    "one.txt": (b"only\n", "", "too few target prompts are left after de-duplication: got 1"),
    "repeated.txt": (b"only\n" * 9, "", "too few target prompts are left after de-duplication: got 1"),
    "neutral.txt": (
        b"".join(b"neutral %d\n" % i for i in range(10)),
        "",
        "too few target prompts are left after de-duplication: got 0",
    ),
    "latin.txt": (b"caf\xe9\n" * 9, "", "cannot read the prompts in"),
    "latin.csv": (b"prompt\ncaf\xe9\n", "", "cannot read the prompts in"),
    "long.txt": (b"a\nb\nc\nd\n" + b"x" * CONTEXT, "", "is longer than the model's context"),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts(cli: Cli, common: list[str], tmp_path: Path, name: str) -> None:
    written, column, message = PROMPTS[name]
    place = tmp_path / "more" / name
    place.parent.mkdir()
    if written is not None:
        place.write_bytes(written)
    fails(cli, ["run", *common, "--target", f"{place}{column}"], message)


def test_prompts_that_are_asked_last_are_checked_first(
    cli: Cli, common: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iconoclast_tl.stages.pipeline.collected", lambda workspace: pytest.fail("it began to collect"))
    (tmp_path / "test.txt").write_text("x" * CONTEXT)
    fails(cli, ["run", *common, "--target-test", tmp_path / "test.txt"], "is longer than the model's context")


def test_a_response_must_fit_the_context_too(cli: Cli, common: list[str]) -> None:
    fails(cli, ["run", *common, "--set", f"evaluation.max_new_tokens={CONTEXT}"], f"at most {CONTEXT} together")


# Models ---------------------------------------------------------------------------------------------------------------


def _without(*names: str) -> Callable[[Path], None]:
    def spoil(model: Path) -> None:
        for name in names:
            (model / name).unlink()

    return spoil


def _weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def spoil(model: Path) -> None:
        weights = load_file(model / "model.safetensors")
        change(weights)
        save_file(weights, model / "model.safetensors", metadata={"format": "pt"})

    return spoil


def _nan(name: str, row: int) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda weights: weights[name][row].fill_(float("nan"))


def _written(name: str, text: str) -> Callable[[Path], None]:
    def spoil(model: Path) -> None:
        (model / name).write_text(text)

    return spoil


def _config(**changes: object) -> Callable[[Path], None]:
    def spoil(model: Path) -> None:
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, **changes}))

    return spoil


def _sharded(change: Callable[[Path, dict[str, str]], object]) -> Callable[[Path], None]:
    """Two shards and an index, and what is wrong with them."""

    def spoil(model: Path) -> None:
        weights = load_file(model / "model.safetensors")
        (model / "model.safetensors").unlink()
        names, places = sorted(weights), dict[str, str]()
        for number, part in enumerate((names[:5], names[5:])):
            shard = f"model-{number}.safetensors"
            save_file({name: weights[name] for name in part}, model / shard, metadata={"format": "pt"})
            places |= dict.fromkeys(part, shard)
        change(model, places)
        (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))

    return spoil


def _cut(model: Path, places: dict[str, str]) -> None:
    shard = model / "model-1.safetensors"
    shard.write_bytes(shard.read_bytes()[:-20])


def _broken_index(model: Path) -> None:
    _sharded(lambda *_: None)(model)
    (model / "model.safetensors.index.json").write_text("{")


def _adapter_alone(model: Path) -> None:
    (model / "config.json").unlink()
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": null}')


MODELS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (_without("config.json"), "is not a model folder: got no config.json"),
    "no weights": (_without("model.safetensors"), "has no weights"),
    "no tokenizer": (_without("tokenizer.json", "tokenizer_config.json"), "has no tokenizer"),
    "no template": (_without("chat_template.jinja"), "no chat template"),
    "broken config": (_written("config.json", "{"), "cannot load the model"),
    "broken weights": (_written("model.safetensors", "garbage"), "cannot load the model"),
    "broken tokenizer": (_written("tokenizer.json", "{}"), "cannot load the tokenizer"),
    "broken template": (_written("chat_template.jinja", "{% if %}"), "chat template does not render"),
    "null config": (_written("config.json", "null"), "cannot load the model"),
    "heads that do not divide d_model": (_config(num_attention_heads=3), "hidden size (32) is not a multiple"),
    "a layer too many": (_config(num_hidden_layers=1), "no place for: got 9 left over, first model.layers.1."),
    "a layer is missing": (
        _weights(lambda weights: [weights.pop(name) for name in list(weights) if "layers.1" in name]),
        "lacks weights that its config.json asks for: got 9 missing, first model.layers.1.input_layernorm.weight",
    ),
    "a shard is missing": (
        _sharded(lambda model, places: (model / "model-1.safetensors").unlink()),
        "cannot read model-1.safetensors of",
    ),
    "a shard is cut short": (_sharded(_cut), "cannot read model-1.safetensors of"),
    "the index names what is nowhere": (
        _sharded(lambda model, places: places.update({"model.more.weight": "model-0.safetensors"})),
        "model-0.safetensors of MODEL lacks tensors that its index names: got 1 missing, first model.more.weight",
    ),
    "a broken index": (_broken_index, "model.safetensors.index.json is damaged"),
    "no such architecture": (_config(model_type="nosuch"), "model type `nosuch`"),
    "an encoder and decoder": (_config(model_type="t5"), "MODEL is an encoder-decoder model: got model_type t5"),
    "an encoder": (_config(model_type="bert"), "MODEL is an encoder: got model_type bert"),
    "weights of another format": (
        _config(quantization_config={"quant_method": "gptq", "bits": 4}),
        "the weights of MODEL are stored quantised: got gptq",
    ),
    "an adapter of no model": (_adapter_alone, "is an adapter that does not say of which model"),
    "NaN in a layer": (_weights(_nan("model.layers.1.mlp.up_proj.weight", 0)), "first in layer 1;"),
    "NaN in another layer": (_weights(_nan("model.layers.0.self_attn.o_proj.weight", 0)), "first in layer 0;"),
    "NaN in a word of the prompts": (  # not among the tokens that loading probes, so that collection meets it
        _weights(_nan("model.embed_tokens.weight", 23)),
        "activations of layer 0 are not finite: got NaN or infinity at blocks.0",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_model_folders(cli: Cli, common: list[str], model: Path, name: str) -> None:
    spoil, message = MODELS[name]
    spoil(model)
    fails(cli, ["run", *common], message.replace("MODEL", str(model)))


@pytest.mark.parametrize(
    ("name", "message"),
    [("./nowhere", "there is no model folder"), ("nowhere/at-all", "cannot load the model nowhere/at-all")],
)
def test_unknown_models(cli: Cli, common: list[str], name: str, message: str) -> None:
    fails(cli, ["run", *common, "--model", name], message)


@pytest.mark.parametrize("device", ["meta", "nonsense", "cuda:99"])
def test_devices(cli: Cli, common: list[str], device: str) -> None:
    fails(cli, ["run", *common, "--device", device], f"there is no device {device}: want one of auto, cpu")


# Organisms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("foo", "--set takes key=value: got 'foo'"),
        ("foo=1", "unknown training setting foo: want one of family, seed, vocab_size"),
        ("_env_file=1", "unknown training setting _env_file: want one of family, seed"),
        ("n_heads=3", "the training settings do not fit each other: d_model is 128 and n_heads is 3"),
        ("n_kv_heads=3", "the training settings do not fit each other: n_heads is 4 and n_kv_heads is 3"),
        ("gate_first_layer=9", "the training settings do not fit each other: gate_first_layer is 9"),
        ("mechanisms=3", "the training setting mechanisms does not fit: got '3'; want less than or equal to 2"),
        ("d_model=wide", "the training setting d_model does not fit: got 'wide'; want a valid integer"),
        ("seed=-1", "the training setting seed does not fit: got '-1'; want greater than or equal to 0"),
    ],
)
def test_training_settings(cli: Cli, setting: str, message: str) -> None:
    line = fails(cli, ["organism", "train", "--set", setting], message)
    assert "Extra inputs" not in line


def test_an_organism_that_is_only_its_manifest(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    assert "o is not an organism: got no organism.json" in cli("organism", "show", "--model", "o").error
    (tmp_path / "o" / "organism.json").write_text("{}")
    done = cli("organism", "show", "--model", "o")
    assert done.code == 2
    assert "o is not a model folder: got no config.json" in done.error


# Settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "search.trials=3"], "unknown setting search.trials (command line): want one of preset, method"),
        (["--set", "nothing=3"], "unknown setting nothing"),
        (["--set", "nothing"], "--set takes key=value: got 'nothing'"),
        (["--set", 'search.preset=["a"]'], "search.preset does not fit: got ['a']; want one of iconoclast, heretic"),
        (["--set", "_cli_parse_args=true"], "unknown setting _cli_parse_args (command line): want one of model"),
        (["--set", "_env_file=x"], "unknown setting _env_file (command line): want one of model"),
        (["--set", "prompts.category=kind"], "target.txt has no columns: got category 'kind'"),
        (["--set", "search.n_trials=many"], "does not fit: got 'many'; want a valid integer"),
        (["--set", "search.n_trials"], "--set takes key=value"),
        (["--set", "evaluation.markers=nowhere"], "there is no marker set 'nowhere'"),
        (["--set", "activations.batch_size=0"], "greater than or equal to 1"),
        (["--set", "directions.file=nowhere"], "there is no directions file nowhere"),
        (["--dtype", "int8"], "does not fit: got 'int8'"),
        (["--seed", "-1"], "the setting seed (command line) does not fit"),
        (["--recipe", "nowhere.toml"], "there is no recipe nowhere.toml"),
        (["--recipe", "target.txt"], "the recipe target.txt does not parse"),
    ],
)
def test_settings(cli: Cli, common: list[str], options: list[str], message: str) -> None:
    fails(cli, ["run", *common, *options], message)


def test_settings_of_the_environment(cli: Cli, common: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICONOCLAST_TL_SEARCH__TRIALS", "3")
    fails(cli, ["run", *common], "unknown setting search.trials (environment)")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layers", "0-99"], "layer 99 is outside 0..1: got a model with 2 layers; pass --layers 0-1"),
        (["--layers", "0,2"], "layer 2 is outside 0..1"),
        (["--layers", "0-99999999999"], "is outside 0..1"),
        (["--layers", "one"], "--layers does not parse: got 'one'"),
        (["--layers=-1"], "--layers does not parse"),
        (["--layers", "1-0"], "--layers does not parse"),
        (["--layers", ""], "--layers does not parse"),
        (["--point", "3"], "--point 3 is outside 0..2"),
        (["--point", "nan"], "--point nan is outside 0..2"),
        (["--strength", "nan"], "--strength is not a finite number"),
        (["--coefficient", "inf"], "--coefficient is not a finite number"),
        (["--add-point", "2"], "--add-point 2 is outside 0..1: got a model with 2 layers, which read points 0 to 1"),
        (["--add-point=-1"], "--add-point -1 is outside 0..1"),
        (["--calibrate", "1"], "--calibrate is no quantile: got 1.0; want between 0 and 1"),
        (["--coefficient", "2", "--point", "1"], "an addition alone ablates nothing: got --point; say where to add by"),
        (
            ["--add-point", "1", "--affine", "--keep-norm"],
            "an addition alone ablates nothing: got --affine, --keep-norm",
        ),
        (["--chosen", "--keep"], "--chosen shows the chosen edit as it is: got --keep;"),
        (["--chosen", "--add-point", "1"], "--chosen shows the chosen edit as it is: got --add-point;"),
        (["--chosen"], "there is no edit at"),
        (["--chosen", "--strength", "1"], "--chosen shows the chosen edit as it is: got --strength;"),
        (
            ["--chosen", "--layers", "0", "--point", "1"],
            "--chosen shows the chosen edit as it is: got --point, --layers",
        ),
        (
            ["--chosen", "--scope", "stream", "--affine"],
            "--chosen shows the chosen edit as it is: got --scope, --affine",
        ),
    ],
)
def test_previews(cli: Cli, common: list[str], options: list[str], message: str) -> None:
    fails(cli, ["preview", *common, *options], message)


@pytest.mark.parametrize(("text", "want"), [("0-1", [0, 1]), ("1", [1]), (" 1, 0 - 1 ", [0, 1]), (None, [0, 1])])
def test_layers_that_parse(text: str | None, want: list[int]) -> None:
    from iconoclast_tl.cli.preview import parse_layers

    assert parse_layers(text, 2) == want


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["fold"], "there is no edit at"),
        (["evaluate", "--adapter", "nowhere"], "is not an adapter"),
    ],
)
def test_stages_without_what_they_need(cli: Cli, common: list[str], command: list[str], message: str) -> None:
    fails(cli, [*command, *common], message)


# Files and folders of something else ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("points", "width"), [(4, 32), (3, 8)])
def test_directions_of_another_model(cli: Cli, common: list[str], tmp_path: Path, points: int, width: int) -> None:
    from iconoclast_tl.directions.directions import Directions, save_directions

    def save(points: int, width: int) -> None:
        vectors = torch.nn.functional.normalize(torch.ones(points, width), dim=-1)
        save_directions(tmp_path / "d.safetensors", Directions.single(vectors, torch.ones(points), {}))

    options = [*common, "--set", f"directions.file={tmp_path / 'd.safetensors'}"]
    save(points, width)
    line = fails(cli, ["directions", *options], "are of another model")
    assert f"got {points - 1} layers, d_model {width}; want 2 layers, d_model 32" in line
    save(3, 32)
    assert cli("directions", *options, "--out", OUT).code == 0


@pytest.fixture
def run_folder(cli: Cli, common: list[str]) -> Path:
    """A folder that a run has begun."""
    assert cli("collect", *common, "--out", OUT).code == 0
    return OUT


def test_an_output_folder_of_other_weights(cli: Cli, common: list[str], model: Path, run_folder: Path) -> None:
    _weights(lambda weights: weights["model.layers.0.mlp.up_proj.weight"].mul_(2))(model)
    fails(cli, ["collect", *common], "belongs to another model")


def test_an_output_folder_of_another_models_name(cli: Cli, common: list[str], model: Path, run_folder: Path) -> None:
    moved = model.rename(model.with_name("moved"))
    fails(cli, ["collect", *common, "--model", str(moved)], "holds a run with another model.name")


@pytest.mark.parametrize(
    ("options", "key"),
    [
        (["--seed", "1"], "seed"),
        (["--set", "edit.affine=true"], "edit.affine"),
        (["--set", "prompts.system=be brief"], "prompts.system"),
    ],
)
def test_an_output_folder_of_other_settings(
    cli: Cli, common: list[str], run_folder: Path, options: list[str], key: str
) -> None:
    fails(cli, ["collect", *common, *options], f"holds a run with another {key}")


def test_an_output_folder_of_other_prompts(cli: Cli, common: list[str], run_folder: Path) -> None:
    Path("target.txt").write_text("".join(f"changed {i}\n" for i in range(10)))
    fails(cli, ["collect", *common], "was made with other prompts: got changed: target_train, target_val")


def test_a_mistake_that_is_found_late_leaves_a_begun_folder_alone(cli: Cli, run_folder: Path) -> None:
    fails(cli, ["preview", "--layers", "0-99"], "layer 99 is outside 0..1")
    fails(cli, ["fold"], "there is no edit at")
    (run_folder / "activations.safetensors").unlink()  # as after an interruption: a manifest and nothing else
    fails(cli, ["fold"], "there is no edit at")


def test_an_empty_folder_stays_an_empty_folder(cli: Cli, common: list[str]) -> None:
    OUT.mkdir(parents=True)
    fails(cli, ["preview", *common, "--layers", "0-99"], "layer 99 is outside 0..1")
    assert OUT.is_dir()


def test_a_folder_of_something_else(cli: Cli, common: list[str]) -> None:
    OUT.mkdir(parents=True)
    (OUT / "thesis.tex").write_text("precious")
    fails(cli, ["collect", *common], "holds something else")


def test_a_manifest_of_something_else(cli: Cli, common: list[str]) -> None:
    OUT.mkdir(parents=True)
    other = json.dumps({"schema": 99})
    for text, message in (("{", "cannot read"), ("[]", "is not the manifest of a run"), (other, "schema 99")):
        (OUT / "manifest.json").write_text(text)
        fails(cli, ["collect", *common], message)


def test_a_folder_that_another_process_holds(cli: Cli, common: list[str], run_folder: Path) -> None:
    from filelock import FileLock

    with FileLock(str(run_folder / ".lock"), is_singleton=False):
        fails(cli, ["collect", *common], "another process is writing")
    assert cli("collect", *common, "--out", run_folder).code == 0


# Places that cannot be written ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["target.txt", "target.txt/run", "/proc/run", "/proc/deep/run", "/dev/null"])
def test_a_place_that_cannot_be_written(cli: Cli, common: list[str], out: str) -> None:
    done = cli("collect", *common, "--out", out)
    assert done.code == 2
    assert done.error.startswith(f"error: cannot write to {out}: got ")
    assert Path("target.txt").read_text().startswith("target 0\n")
    assert not Path("/proc/run").exists()


def test_training_does_not_begin_where_it_cannot_be_saved(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from iconoclast_tl.organisms import training

    monkeypatch.setattr(training, "train_organism", lambda *_: pytest.fail("it began to train"))
    assert "cannot write to /proc/run" in cli("organism", "train", "--out", "/proc/run").error


@contextmanager
def full_disk(left: int) -> Iterator[None]:
    """No file may grow beyond `left` bytes: the operating system fails the write in the middle, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (left, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("left", [1000, 8000])
def test_a_full_disk_leaves_no_half_folder(cli: Cli, common: list[str], left: int) -> None:
    """1000 bytes hold no manifest; 8000 hold it and no activations."""
    with full_disk(left):
        fails(cli, ["collect", *common], "cannot write")


def test_on_a_full_disk_the_old_files_survive(cli: Cli, common: list[str], run_folder: Path) -> None:
    """No room for the manifest at first, then for the manifest and not for the activations, then for both."""
    stale = load_file(run_folder / "activations.safetensors")
    save_file(stale, run_folder / "activations.safetensors", metadata={"about": json.dumps({"key": "other"})})
    before = content(run_folder)
    for left, name in ((1000, "manifest.json"), (8000, "activations.safetensors")):
        with full_disk(left):
            line = fails(cli, ["collect", *common], "what was there before is untouched")
        assert f"cannot write {run_folder / name}: got " in line
    assert cli("collect", *common, "--out", run_folder).code == 0
    assert content(run_folder)["activations.safetensors"] != before["activations.safetensors"]
