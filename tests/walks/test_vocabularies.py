"""Ids of two vocabularies never meet in one model unless the config says so: real files, real BPE, and a loader that is nobody's."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import stackwise
from stackwise import BatchSpec, ConfigError, GenerationSettings, TensorSpec, UserError, discover, generate, make_plan
from stackwise.runs.run import run
from stackwise.saved.export import export
from stackwise_providers_data.tokenizer_files import byte_tokenizer

BPE = {"bpe": {"vocab": 270}}


class Ids:
    """The smallest loader that may name its vocabulary."""

    def __init__(self, vocabulary: str | None) -> None:
        self.vocabulary = vocabulary

    def get_batch_spec(self) -> BatchSpec:
        return BatchSpec(fields={"tokens": TensorSpec("batch time", "int64", bounds=(0, 270))})

    def take(self, rows: int, length: int) -> dict[str, torch.Tensor]:
        return {"tokens": torch.zeros(rows, length, dtype=torch.int64)}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def fingerprint(self) -> dict[str, Any]:
        return {} if self.vocabulary is None else {"vocabulary": self.vocabulary}


def text(name: str, tokenizer: Any) -> dict[str, Any]:
    return {"use": "data.text-files", "paths": [f"{name}.txt"], "heldout": 0, "tokenizer": tokenizer}


def config_of(sources: dict[str, Any], **sections: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "run": {"horizon": "2 steps", "seed": 3, "device": "cpu"},
        "task": {"use": "transformer.causal-lm"},
        "data": {"sources": sources, "batch_size": 2, "seq_len": 8},
        "model": {
            "embedding": {"use": "transformer.token", "vocab": 270},
            "rack": {"use": "transformer.decoder", "width": 16, "heads": 2, "stacks": [{"base": 1}]},
            "head": {"use": "transformer.lm"},
        },
        "optimizer": {"use": "optim.adamw", "lr": 0.02},
    }
    for name, section in sections.items():
        base[name] = {**base.get(name, {}), **section}
    return base


def refused(sources: dict[str, Any], **sections: Any) -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as caught:
        stackwise.assemble(stackwise.experiment(config_of(sources, **sections)))
    return [(problem.path, problem.message) for problem in caught.value.problems]


def trained(config: dict[str, Any], name: str) -> Path:
    Path(f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return run(Path(f"{name}.yaml"), output=Path(name), stream=io.StringIO()).directory


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("tokenizers")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STACKWISE_CACHE", str(tmp_path / "cache"))
    Path("one.txt").write_text("the cat sat on the mat " * 60)
    Path("two.txt").write_text("a quick brown fox jumps " * 60)
    return tmp_path


def test_a_loader_of_ones_own_names_its_vocabulary_or_is_not_compared() -> None:
    ((path, message),) = refused({"a": Ids("greek"), "b": Ids("latin"), "c": Ids(None)})
    assert path == "data.sources.b" and all(word in message for word in ("'a'", "greek", "'b'", "latin", "vocabularies: several"))
    stackwise.assemble(stackwise.experiment(config_of({"a": Ids("greek"), "b": Ids("greek"), "c": Ids(None)})))
    stackwise.assemble(stackwise.experiment(config_of({"a": Ids("greek"), "b": Ids("latin")}, run={"vocabularies": "several"})))


@pytest.mark.parametrize("other", ["bytes", {"bpe": {"vocab": 270, "min_frequency": 3}}], ids=["bytes", "another that is learnt"])
def test_sources_of_one_run_are_compared_before_any_data_are_read(other: Any) -> None:
    Path("one.txt").unlink()
    Path("two.txt").unlink()
    with pytest.raises(ConfigError) as caught:
        make_plan(stackwise.experiment(config_of({"a": text("one", BPE), "b": text("two", other)})), discover())
    assert [problem.path for problem in caught.value.problems] == ["data.sources.b"]


def test_tokenizer_files_are_compared_while_a_run_is_planned() -> None:
    byte_level = byte_tokenizer().files["tokenizer.json"]
    for name, content in {"x": byte_level, "y": byte_level, "z": byte_level + b" "}.items():
        Path(f"{name}.json").write_bytes(content)

    def sources(other: str) -> dict[str, Any]:
        return {"a": text("one", {"file": "x.json"}), "b": text("two", {"file": other})}

    make_plan(stackwise.experiment(config_of(sources("y.json"))), discover())
    make_plan(stackwise.experiment(config_of(sources("z.json"), run={"vocabularies": "several"})), discover())
    for wrong in ("z.json", "missing.json"):
        with pytest.raises(ConfigError) as caught:
            make_plan(stackwise.experiment(config_of(sources(wrong))), discover())
        assert [problem.path for problem in caught.value.problems] == ["data.sources.b"]


def test_sources_of_a_later_phase() -> None:
    phases = {"first": {"until": "50%"}, "last": {"until": "100%", "data": {"sources": {"a": None, "b": text("two", "bytes")}}}}
    assert [path for path, _ in refused({"a": text("one", BPE)}, phases=phases)] == ["phases.last.data.sources.b"]


def test_sources_of_an_evaluation() -> None:
    own = {"other": {"sources": {"b": {**text("two", "bytes"), "heldout": 1}}}}
    assert [path for path, _ in refused({"a": text("one", BPE)}, evaluate=own)] == ["evaluate.other.sources.b"]
    Path("exp.yaml").write_text(yaml.safe_dump(config_of({"a": text("one", BPE)}, evaluate=own), sort_keys=False))
    with pytest.raises(ConfigError) as caught:
        make_plan(stackwise.config.load(Path("exp.yaml")), discover())
    (problem,) = caught.value.problems
    assert problem.where is not None and Path("exp.yaml").read_text().splitlines()[problem.where.line - 1].strip().startswith("b:")


@pytest.mark.parametrize("exported", [False, True], ids=["a run", "an export"])
def test_weights_to_start_from(exported: bool) -> None:
    base = trained(config_of({"a": text("one", BPE)}), "base")
    origin = base
    if exported:
        origin = Path("exported")
        export(base, origin)
    start = {**config_of({})["model"], "start": {"from": str(origin)}}
    ((path, message),) = refused({"b": text("two", BPE)}, model=start)
    assert path == "data.sources.b"
    assert str(origin) in message and "'a'" in message and "'b'" in message
    stackwise.assemble(stackwise.experiment(config_of({"a": text("one", BPE)}, model=start)))
    stackwise.assemble(stackwise.experiment(config_of({"b": text("two", BPE)}, model=start, run={"vocabularies": "several"})))
    anew = {**start, "start": {"from": str(origin), "drop": ["embedding", "head"]}}
    stackwise.assemble(stackwise.experiment(config_of({"b": text("two", BPE)}, model=anew)))
    rest = {**start, "start": {"from": str(origin), "drop": ["rack"]}}
    assert [path for path, _ in refused({"b": text("two", BPE)}, model=rest)] == ["data.sources.b"]


def test_the_file_of_a_learnt_vocabulary_is_that_vocabulary() -> None:
    base = trained(config_of({"a": text("one", BPE)}), "base")
    (learnt,) = Path("cache").glob("bpe-*/tokenizer.json")
    shutil.copy(learnt, "bpe.json")
    by_file = {"file": "bpe.json", "separator": "<|endoftext|>"}
    start = {**config_of({})["model"], "start": {"from": str(base)}}
    stackwise.assemble(stackwise.experiment(config_of({"b": text("two", by_file), "c": text("one", {"file": "bpe.json"})}, model=start)))


def test_a_prompt_of_text_is_refused_where_several_vocabularies_are_meant() -> None:
    sources = {"a": text("one", BPE), "b": text("two", "bytes")}
    directory = trained(config_of(sources, run={"vocabularies": "several"}), "mixed")
    with pytest.raises(UserError, match="several vocabularies"):
        generate(directory, "the", GenerationSettings(tokens=2))
    assert len(generate(directory, [1, 2], GenerationSettings(tokens=2)).ids) == 4
