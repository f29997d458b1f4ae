"""Low-rank adapters in files of peft, read and written, against peft itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import peft
import pytest
import torch
import transformers as hf
import yaml
from grown_models import language_model
from safetensors.torch import load_file, save_file

import stackwise
from stackwise import BuildContext, Model, UserError
from stackwise.assembly.start import read_folder
from stackwise.assembly.stored import build_stored
from stackwise.cli import main
from stackwise.host.discovery import discover
from stackwise_providers_transformer.format_options import HuggingFaceOptions
from stackwise_providers_transformer.hugging_face.format import HuggingFaceFormat
from stackwise_providers_transformer.lora import build_lora
from stackwise_providers_transformer.lora_options import LoRAOptions

SIZES = {"vocab_size": 19, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
BASES: dict[str, tuple[hf.PreTrainedConfig, list[str]]] = {
    "llama": (hf.LlamaConfig(**SIZES, num_key_value_heads=1), ["q_proj", "v_proj", "down_proj"]),
    "neox": (hf.GPTNeoXConfig(**SIZES), ["query_key_value", "dense_4h_to_h"]),
    "gpt2": (hf.GPT2Config(vocab_size=19, n_embd=16, n_layer=2, n_head=2), ["c_attn", "c_proj"]),
    "starcoder2": (hf.Starcoder2Config(**SIZES, num_key_value_heads=1), ["q_proj", "v_proj", "c_fc"]),  # transformers computes these
    "mixtral": (hf.MixtralConfig(**SIZES, num_key_value_heads=1, num_local_experts=3), ["q_proj", "v_proj", "o_proj"]),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"r": 2, "lora_alpha": 3},
    "rslora": {"r": 3, "lora_alpha": 3, "use_rslora": True},
    "patterns": {"r": 2, "rank_pattern": {"layers.1.self_attn.v_proj": 4}, "alpha_pattern": {"down_proj": 5, "layers.0.*q_proj": 7}},
    "some": {"r": 2, "rank_pattern": {"layers.1.self_attn.v_proj": 4}, "alpha_pattern": {"layers.0.*q_proj": 7}},
}
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers for it
FORMAT = HuggingFaceFormat(HuggingFaceOptions())
BESIDE = HuggingFaceFormat(HuggingFaceOptions(adapters="beside"))
EVERY: list[Any] = [
    ("llama", "plain"),
    ("llama", "patterns"),
    ("neox", "plain"),
    ("gpt2", "plain"),
    ("starcoder2", "rslora"),
    ("mixtral", "some"),
]
EVERY += [pytest.param(*each, marks=pytest.mark.rare) for each in (("llama", "rslora"), ("starcoder2", "plain"))]
TOKENS = torch.randint(19, (2, 9), generator=torch.Generator().manual_seed(1))


def saved(base: str, folder: Path, **options: Any) -> torch.Tensor:
    """Folders `base` and `adapters`, every parameter drawn; peft's logits."""
    config, modules = BASES[base]
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config).eval()  # type: ignore[no-untyped-call]
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape) * 0.2)
    model.save_pretrained(folder / "base")
    fan = {"fan_in_fan_out": True} if base == "gpt2" else {}
    beside = peft.get_peft_model(model, peft.LoraConfig(target_modules=modules, **fan, **options))
    for name, parameter in beside.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.3)
    beside.peft_config["default"].base_model_name_or_path = str(folder / "base")
    beside.save_pretrained(folder / "adapters")
    with torch.inference_mode():
        plain = hf.AutoModelForCausalLM.from_pretrained(folder / "base").eval()(TOKENS).logits
        logits: torch.Tensor = beside.eval()(TOKENS).logits
    assert (logits - plain).abs().max() > 0.05  # the adapters matter
    return logits


def read(folder: Path, form: HuggingFaceFormat = FORMAT) -> Model:
    """Our model of a folder, filled."""
    stored = form.read(folder)
    model = build_stored(stored, discover(), "cpu")
    for name, parameter in model.named_parameters():
        parameter.data.copy_(stored.tensors[name])
    return model.eval()


@pytest.mark.parametrize(("base", "options"), EVERY)
def test_adapters_beside_a_base_compute_what_peft_computes(base: str, options: str, tmp_path: Path) -> None:
    expected = saved(base, tmp_path, **OPTIONS[options])
    assert FORMAT.recognises(tmp_path / "adapters")
    with torch.inference_mode():
        torch.testing.assert_close(read(tmp_path / "adapters")({"tokens": TOKENS})["logits"], expected, rtol=0, atol=1e-5)


def test_adapters_beside_matrices_on_their_side_are_turned_where_transformers_computes(tmp_path: Path) -> None:
    expected = saved("gpt2", tmp_path, **OPTIONS["plain"])
    wrapped = read(tmp_path / "adapters", HuggingFaceFormat(HuggingFaceOptions(wrap=True)))
    with torch.inference_mode():
        torch.testing.assert_close(wrapped({"tokens": TOKENS})["logits"], expected, rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="c_attn"):
        HuggingFaceFormat(HuggingFaceOptions(wrap=True, adapters="beside")).read(tmp_path / "adapters")


def beside(folder: Path) -> Model:
    """Our model of a folder of adapters, the adapters beside it, filled."""
    stored = BESIDE.read(folder)
    model = build_stored(stored, discover(), "cpu")
    assert {name for name, _ in model.named_parameters()} == set(stored.tensors)
    for name, parameter in model.named_parameters():
        stored.tensors.copy_into(name, parameter.data)  # type: ignore[attr-defined]  # a method of the format's own mapping
    return model.eval()


@pytest.mark.parametrize(("base", "options"), EVERY)
def test_adapters_stay_adapters_and_come_back_as_they_were(base: str, options: str, tmp_path: Path) -> None:
    expected = saved(base, tmp_path, **OPTIONS[options])
    ours = beside(tmp_path / "adapters")
    (out := tmp_path / "out").mkdir()
    BESIDE.write(ours, out, tmp_path / "adapters", {})
    assert sorted(path.name for path in out.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "adapters", out))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    theirs = peft.PeftModel.from_pretrained(hf.AutoModelForCausalLM.from_pretrained(tmp_path / "base"), out).eval()
    merged = [(path, adapter) for (_, path), adapter in ours.attached.items()]
    with torch.inference_mode():
        torch.testing.assert_close(ours({"tokens": TOKENS})["logits"], expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(theirs(TOKENS).logits, expected, rtol=0, atol=1e-6)
        ours.attach({})
        assert (ours({"tokens": TOKENS})["logits"] - expected).abs().max() > 0.05
        for path, adapter in merged:
            weight = ours.get_parameter(f"{path}.weight")
            weight.copy_(adapter.merged(weight))
        torch.testing.assert_close(ours({"tokens": TOKENS})["logits"], expected, rtol=0, atol=1e-5)


def test_what_cannot_stay_beside_is_refused(tmp_path: Path) -> None:
    saved("llama", tmp_path, **OPTIONS["plain"])
    with pytest.raises(UserError, match="adapters"):
        BESIDE.read(tmp_path / "base")
    ours = beside(tmp_path / "adapters")
    (_, path), adapter = next((key, each) for key, each in ours.attached.items() if each.options.rows is not None)
    for options, says in (
        (LoRAOptions(rank=1, rows=(0, 1)), "a part of"),
        (LoRAOptions(rank=2, rows=adapter.options.rows), "one adapter beside"),
        (LoRAOptions(rank=2, rows=(16, 24), scaling="alpha/sqrt(rank)"), "one scaling"),
    ):
        other = build_lora(options, BuildContext(seed=0), ours.get_parameter(f"{path}.weight"))
        ours.attach({**{key: each for key, each in ours.attached.items() if key[0] != "other"}, ("other", path): other})
        (out := tmp_path / says).mkdir()
        with pytest.raises(UserError, match=says):
            BESIDE.write(ours, out, tmp_path / "base", {})


@pytest.mark.slow
def test_a_run_trains_adapters_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved("llama", tmp_path, **OPTIONS["patterns"], lora_dropout=0.0)
    numpy.save("tokens.npy", numpy.arange(400) % 19)
    form = "{use: transformer.hf, adapters: beside}"
    main(["init", "--from", "adapters", "--format", form, "--output", "model.yaml"], standalone_mode=False)
    source = {"use": "data.array-files", "files": {"tokens": "tokens.npy"}, "vocab": 19}
    config: dict[str, Any] = {
        "extends": "model.yaml",
        "run": {"name": "on", "horizon": "4 steps", "device": "cpu"},
        "task": {"use": "transformer.causal-lm"},
        "data": {"sources": {"a": source}, "batch_size": 2, "seq_len": 8},
        "model": {"rack": {"stacks": [{"low": 1}, {"high": 1}]}},
        "optimizer": {"use": "optim.adamw", "lr": 0.1},
    }
    nodes = yaml.safe_load(Path("model.yaml").read_text())["model"]["weight_adapters"]
    selects = {name: [each.replace("stacks.base", "stacks") for each in node["select"]] for name, node in nodes.items()}
    named = {"stacks.0.": "stacks.low.0.", "stacks.1.": "stacks.high.0."}
    for name, select in selects.items():
        for old, new in named.items():
            select = [each.replace(old, new) for each in select]
        config["model"].setdefault("weight_adapters", {})[name] = {"select": select}
    Path("on.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    main(["run", "on.yaml", "--output", "run"], standalone_mode=False)
    main(["export", "run", "out", "--format", "hf"], standalone_mode=False)
    assert sorted(path.name for path in Path("out").glob("*")) == ["adapter_config.json", "adapter_model.safetensors"]  # the base is there
    before, after = load_file("adapters/adapter_model.safetensors"), load_file("out/adapter_model.safetensors")
    assert before.keys() == after.keys() and not any(torch.equal(before[name], after[name]) for name in before)
    theirs = peft.PeftModel.from_pretrained(hf.AutoModelForCausalLM.from_pretrained("base"), "out").eval()
    with torch.inference_mode():
        ours = stackwise.load_exported("run/final")({"tokens": TOKENS})["logits"]
        size = max(1.0, float(ours.abs().max()))
        torch.testing.assert_close(theirs(TOKENS).logits, ours, rtol=0, atol=1e-5 * size)
    name = next(iter(nodes))
    with pytest.raises(UserError, match=f"weight_adapters.{name}.alpha"):
        plan = stackwise.make_plan(stackwise.config.load(Path("on.yaml"), (f"model.weight_adapters.{name}.alpha=9",)), discover())
        list(stackwise.assemble(plan).train())


def adapted(model: Model, scaling: str = "alpha/rank") -> Model:
    """Adapters beside all matrices of the blocks, every value drawn."""
    torch.manual_seed(3)
    attached = {}
    for name, parameter in list(model.named_parameters()):
        if name.startswith("rack.") and isinstance(model.get_submodule(name.rpartition(".")[0]), torch.nn.Linear) and parameter.dim() == 2:
            options = LoRAOptions(rank=2, alpha=5.0, scaling=scaling)  # type: ignore[arg-type]  # one of the two
            attached["style", name.removesuffix(".weight")] = build_lora(options, BuildContext(seed=0), parameter)
    for adapter in attached.values():
        torch.nn.init.normal_(adapter.b, std=0.3)
    model.attach(attached)
    return model.eval()


@pytest.mark.parametrize(("base", "scaling"), [(base, "alpha/sqrt(rank)" if base == "llama" else "alpha/rank") for base in BASES])
def test_peft_reads_what_is_written_beside_the_folder_of_the_run(base: str, scaling: str, tmp_path: Path) -> None:
    saved(base, tmp_path, **OPTIONS["plain"])
    ours = adapted(read(tmp_path / "base"), scaling)
    (out := tmp_path / "out").mkdir()
    FORMAT.write(ours, out, tmp_path / "base", {})
    assert sorted(path.name for path in out.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    named = json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"]
    theirs = peft.PeftModel.from_pretrained(hf.AutoModelForCausalLM.from_pretrained(named), out).eval()
    with torch.inference_mode():
        expected = ours({"tokens": TOKENS})["logits"]
        torch.testing.assert_close(theirs(TOKENS).logits, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(read(out)({"tokens": TOKENS})["logits"], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("origin", ["none", "other", "adapters"])
def test_a_base_that_is_nowhere_else_is_written_too(origin: str, tmp_path: Path) -> None:
    if origin == "none":
        place, ours = None, adapted(language_model())
    else:
        saved("llama", tmp_path, **OPTIONS["plain"])
        place = tmp_path / ("base" if origin == "other" else "adapters")
        ours = adapted(read(place))
        if origin == "other":
            ours.get_parameter("rack.norm.weight").data[0] += 1
    (out := tmp_path / "out").mkdir()
    FORMAT.write(ours, out, place, {})
    theirs = peft.PeftModel.from_pretrained(hf.AutoModelForCausalLM.from_pretrained(out / "base"), out).eval()
    with torch.inference_mode():
        expected = ours({"tokens": TOKENS})["logits"]
        torch.testing.assert_close(theirs(TOKENS).logits, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(read(out)({"tokens": TOKENS})["logits"], expected, rtol=0, atol=1e-5)


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "peft_type": ({"peft_type": "IA3"}, "peft_type: 'IA3'"),
    "bias": ({"bias": "all"}, "bias: 'all'"),
    "dora": ({"use_dora": True}, "use_dora: True"),
    "pissa": ({"init_lora_weights": "pissa"}, "init_lora_weights: 'pissa'"),
    "saved": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "unknown": ({"use_tomorrow": 1}, "use_tomorrow: 1"),
    "rank": ({"r": 3}, "has rank 3 there, and 2"),
    "base": ({"base_model_name_or_path": "somebody/model"}, "base_model_name_or_path: 'somebody/model'"),
}


def test_what_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    saved("llama", tmp_path, **OPTIONS["plain"])
    folder = tmp_path / "adapters"
    config, file = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    fields, tensors = json.loads(config.read_text()), load_file(file)
    for fault, says in FAULTS.values():
        config.write_text(json.dumps(fields | fault))
        with pytest.raises(UserError, match=says):
            FORMAT.read(folder)
    config.write_text(json.dumps(fields))
    a, b = (f"base_model.model.model.layers.0.self_attn.q_proj.lora_{half}.weight" for half in "AB")
    for changed in (
        {name: tensor for name, tensor in tensors.items() if name != b},
        tensors | {"base_model.model.lm_head.weight": tensors[a].clone()},
        tensors | {f"base_model.model.tail.lora_{half}.weight": torch.ones(2, 2) for half in "AB"},
        tensors | {b: tensors[b][:-1].clone()},
    ):
        save_file(changed, file)
        with pytest.raises(UserError, match=r"lora_|lm_head"):
            FORMAT.read(folder)


def fields(**changed: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))

    return apply


def tensors(change: Callable[[str, torch.Tensor], tuple[str, torch.Tensor]]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        save_file(dict(change(*item) for item in load_file(file).items()), file)

    return apply


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()


def pickled_alone(folder: Path) -> None:
    pickled(folder)
    (folder / "adapter_config.json").unlink()


CONFIG, FILE, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
DAMAGE: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "rank of text": (fields(r="2"), CONFIG, "r: '2'"),
    "rank of 0": (fields(r=0), CONFIG, "r: 0"),
    "no alpha": (fields(lora_alpha=None), CONFIG, "lora_alpha: None"),
    "alpha not finite": (fields(lora_alpha=float("nan")), CONFIG, "lora_alpha: nan"),
    "alpha too large": (fields(lora_alpha=10**400), CONFIG, "lora_alpha: 1000"),
    "scaling of text": (fields(use_rslora="false"), CONFIG, "use_rslora: 'false'"),
    "dropout of text": (fields(lora_dropout="much"), CONFIG, "lora_dropout: 'much'"),
    "ranks in a list": (fields(rank_pattern=[4]), CONFIG, "rank_pattern: [4]"),
    "rank by a pattern": (fields(rank_pattern={"q_proj": True}), CONFIG, "rank_pattern: 'q_proj': True"),
    "alpha by a pattern": (fields(alpha_pattern={"q_proj": "5"}), CONFIG, "alpha_pattern: 'q_proj': '5'"),
    "no expression": (fields(alpha_pattern={"layers.(0": 5}), CONFIG, "alpha_pattern: 'layers.(0'"),
    "an expression alone": (fields(rank_pattern={"q)|(v": 2, "(?i)q": 2}), CONFIG, "rank_pattern: '(?i)q'"),
    "one axis": (tensors(lambda name, tensor: (name, tensor.flatten().clone())), FILE, "down_proj.lora_A.weight [48]"),
    "no axis": (tensors(lambda name, tensor: (name, tensor.sum())), FILE, "down_proj.lora_A.weight []"),
    "three axes": (tensors(lambda name, tensor: (name, tensor[None].clone())), FILE, "down_proj.lora_A.weight [1, 2, 24]"),
    "no prefix": (tensors(lambda name, tensor: (name.removeprefix("base_model.model."), tensor)), FILE, "layers.0"),
    "pickled": (pickled, PICKLE, "pickled adapters are not read"),
    "pickled alone": (pickled_alone, PICKLE, "pickled adapters are not read"),
    "no adapters": (lambda folder: (folder / FILE).unlink(), FILE, "missing"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `base` and `adapters` with nothing wrong, and dropout that peft trained them with."""
    saved("llama", folder := tmp_path_factory.mktemp("whole"), **OPTIONS["plain"], lora_dropout=0.25)
    return folder / "adapters"


@pytest.mark.parametrize(("damage", "file", "says"), DAMAGE.values(), ids=DAMAGE)
def test_what_no_scale_can_be_made_of_is_refused_by_file_and_field(
    whole: Path, damage: Callable[[Path], None], file: str, says: str, tmp_path: Path
) -> None:
    folder = tmp_path / "adapters"
    shutil.copytree(whole, folder)
    damage(folder)
    with pytest.raises(UserError) as caught:
        read_folder(folder, discover())
    assert str(folder / file) in str(caught.value) and says in str(caught.value)


def test_dropout_that_is_not_taken_over_is_said(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["init", "--from", str(whole)], standalone_mode=False)
    assert "# lora_dropout: 0.25 is not taken over" in capsys.readouterr().out
    shutil.copytree(whole, tmp_path / "none")
    fields(lora_dropout=0)(tmp_path / "none")
    assert not [note for note in FORMAT.read(tmp_path / "none").notes if "dropout" in note]


def test_adapters_that_have_no_words_there_are_refused(tmp_path: Path) -> None:
    model = adapted(language_model())
    model.attach({key: torch.nn.Linear(1, 1) for key in model.attached})
    with pytest.raises(UserError, match="is not a transformer"):
        FORMAT.write(model, tmp_path, None, {})


@pytest.mark.slow
@pytest.mark.parametrize(("base", "attention"), [("llama", "*.attention.*"), ("starcoder2", "*.self_attn.*")])
def test_a_run_writes_its_adapters_and_another_begins_with_them(
    base: str, attention: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(base, tmp_path, **OPTIONS["plain"])
    numpy.save("tokens.npy", numpy.arange(400) % 19)
    lora = {"use": "transformer.lora", "select": [attention], "rank": 2}
    config: dict[str, Any] = {
        "run": {"name": "first", "horizon": "3 steps", "device": "cpu"},
        "task": {"use": "transformer.causal-lm"},
        "data": {
            "sources": {"a": {"use": "data.array-files", "files": {"tokens": "tokens.npy"}, "vocab": 19}},
            "batch_size": 2,
            "seq_len": 8,
        },
        "model": {"freeze": ["embedding", "rack", "head"], "weight_adapters": {"style": lora}},
        "optimizer": {"use": "optim.adamw", "lr": 0.1},
    }
    for name, start in (("first", "base"), ("second", "out")):
        main(["init", "--from", start, "--output", f"{name}-model.yaml"], standalone_mode=False)
        Path(f"{name}.yaml").write_text(yaml.safe_dump({**config, "extends": f"{name}-model.yaml"}))
        main(["run", f"{name}.yaml", "--output", f"runs/{name}"], standalone_mode=False)
        main(["export", f"runs/{name}", "out" if name == "first" else "again", "--format", "hf"], standalone_mode=False)
        theirs = hf.AutoModelForCausalLM.from_pretrained("base" if name == "first" else "again/base")
        adapted = peft.PeftModel.from_pretrained(theirs, "out" if name == "first" else "again").eval()
        with torch.inference_mode():
            ours = stackwise.load_exported(f"runs/{name}/final")({"tokens": TOKENS})["logits"]
            size = max(1.0, float(ours.abs().max()))  # of the largest logit, 2.2 here
            torch.testing.assert_close(adapted(TOKENS).logits, ours, rtol=0, atol=1e-5 * size)
