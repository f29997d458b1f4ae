"""A tokenizer belongs to its run: one for all sources with equal settings, which outlives their files, the cache and former runs."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import stackwise
from stackwise import ConfigError, DataError, GenerationSettings, UserError, generate, read_tokenizers
from stackwise.runs.run import resume, run
from stackwise.saved.export import export
from stackwise_providers_data import bpe, corpus

BPE = {"bpe": 264}
GREEDY = GenerationSettings(tokens=4, temperature=0)
ONE, TWO = "the cat sat on the mat " * 60, "a quick brown fox jumps " * 60


def text(name: str, tokenizer: Any = BPE) -> dict[str, Any]:
    return {"use": "data.text-files", "paths": [f"texts/{name}.txt"], "heldout": 0, "tokenizer": tokenizer}


def config_of(sources: dict[str, Any], steps: int = 2, **sections: Any) -> dict[str, Any]:
    rack = {"use": "transformer.decoder", "width": 8, "heads": 1, "stacks": [{"base": 1}]}
    return {
        "run": {"horizon": f"{steps} steps", "seed": 3, "device": "cpu", "checkpoint": {"every": "1 steps", "keep_last": 9}},
        "task": {"use": "transformer.causal-lm"},
        "data": {"sources": sources, "batch_size": 2, "seq_len": 8},
        "model": {"embedding": {"use": "transformer.token", "vocab": 264}, "rack": rack, "head": {"use": "transformer.lm"}},
        "optimizer": {"use": "optim.adamw", "lr": 0.02},
        **sections,
    }


def trained(config: dict[str, Any], name: str = "out") -> Path:
    Path(f"{name}.yaml").write_text(json.dumps(config))
    return run(Path(f"{name}.yaml"), output=Path(name), stream=io.StringIO()).directory


def losses(directory: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (directory / "metrics.jsonl").read_text().splitlines()]


def forget_everything() -> None:
    for folder in ("texts", "cache"):
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("tokenizers")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STACKWISE_CACHE", str(tmp_path / "cache"))
    Path("texts").mkdir()
    Path("texts/one.txt").write_text(ONE)
    Path("texts/two.txt").write_text(TWO)
    return tmp_path


def vocabularies(place: Path) -> list[str]:
    return [entry.tokenizer.vocabulary for entry in read_tokenizers(place).entries]


def test_sources_with_equal_settings_share_a_vocabulary_learnt_on_all_of_them(here: Path) -> None:
    """What the library itself learns on the same texts, in the order of the timeline; an evaluation adds nothing to it."""
    import tokenizers

    own = {"other": {"sources": {"c": text("three")}}}
    Path("texts/three.txt").write_text("zebras zigzag " * 60)
    directory = trained(config_of({"a": text("one"), "b": text("two")}, evaluate=own))
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    expected = tokenizers.Tokenizer(tokenizers.models.BPE())
    expected.pre_tokenizer, expected.decoder = level, tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=264, min_frequency=2, special_tokens=["<|endoftext|>"], initial_alphabet=sorted(level.alphabet()), show_progress=False
    )
    expected.train_from_iterator([ONE, TWO], trainer)
    (entry,) = read_tokenizers(directory).entries
    kept = tokenizers.Tokenizer.from_buffer(entry.tokenizer.files["tokenizer.json"])
    assert kept.get_vocab() == expected.get_vocab()
    prints = json.loads((directory / "final" / "weights.json").read_text())["data"]
    assert {source["vocabulary"] for source in prints.values()} == {entry.tokenizer.vocabulary}


def test_epochs_are_counted_with_the_vocabulary_that_is_shared() -> None:
    config = config_of({"a": text("one"), "b": text("two")})
    config["run"]["horizon"] = "1 epoch of a"
    plan = stackwise.make_plan(stackwise.experiment(config), stackwise.discover())
    size = plan.joined[0].drafts.sources["a"].epoch_size
    tokenizer = plan.tokenizers.entries[0].tokenizer
    ids = stackwise.discover().get("loader", "data.text-files").load_options().codec_of(tokenizer).encode(ONE)
    assert size is not None and size.entries == len(ids)


@pytest.mark.parametrize("tokenizer", ["bytes", BPE, {"file": "texts/tokenizer.json"}], ids=["bytes", "learnt", "a file"])
def test_text_is_generated_when_files_and_cache_are_gone(tokenizer: Any) -> None:
    if tokenizer == {"file": "texts/tokenizer.json"}:
        (kept,) = read_tokenizers(trained(config_of({"a": text("one")}), "base")).entries
        Path("texts/tokenizer.json").write_bytes(kept.tokenizer.files["tokenizer.json"])
    directory = trained(config_of({"a": text("one", tokenizer)}))
    expected = generate(directory, "the cat", GREEDY)
    export(directory, Path("exported"))
    forget_everything()
    export(directory, Path("exported-at-2"), step=2)
    for place in (directory, Path("exported"), Path("exported-at-2"), directory / "final"):
        assert generate(place, "the cat", GREEDY) == expected
        assert vocabularies(place) == vocabularies(directory)
    shutil.rmtree(directory / "final")
    assert generate(directory, "the cat", GREEDY) == expected


@pytest.mark.parametrize("tokenizer", [BPE, {"file": "tokenizer.json"}, {"run": "base"}], ids=["learnt", "a file", "of a run"])
def test_a_resume_uses_the_tokenizer_of_the_run_and_learns_none(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is lost, the file of the tokenizer is another one, the former run is gone: the steps are those of a run left alone."""
    base = trained(config_of({"a": text("one")}), "base")
    Path("tokenizer.json").write_bytes(read_tokenizers(base).entries[0].tokenizer.files["tokenizer.json"])
    sources = {"a": text("one", tokenizer), "b": text("two", tokenizer)}
    whole = trained(config_of(sources, steps=4), "whole")
    half = trained(config_of(sources, steps=4), "half")
    for step in (3, 4):
        shutil.rmtree(half / "checkpoints" / f"step-{step:09d}")
    (half / "status.json").write_text(json.dumps({"status": "stopped"}))
    shutil.rmtree("cache")
    shutil.rmtree("base")
    Path("tokenizer.json").write_text("{}")

    def never(*arguments: Any) -> Any:
        raise AssertionError("a vocabulary is learnt at a resume")

    monkeypatch.setattr(corpus, "learn_bpe", never)
    monkeypatch.setattr(bpe, "learn_bpe", never)
    resume(half, stream=io.StringIO())
    assert losses(half) == losses(whole) and len(losses(half)) == 4
    assert vocabularies(half) == vocabularies(whole)


@pytest.mark.parametrize("tokenizer", ["bytes", BPE], ids=["bytes", "learnt"])
def test_a_tokenizer_that_is_gone_from_its_run_is_made_again_where_it_is_the_same(tokenizer: Any) -> None:
    directory = trained(config_of({"a": text("one", tokenizer)}))
    kept = read_tokenizers(directory)
    shutil.rmtree(directory / "tokenizers")
    said = io.StringIO()
    resume(directory, ["run.horizon=3 steps"], stream=said)
    assert read_tokenizers(directory) == kept and f"tokenizer {kept.entries[0].tokenizer.vocabulary} was gone" in said.getvalue()
    shutil.rmtree(directory / "tokenizers")
    Path("texts/one.txt").write_text(TWO)
    with pytest.raises(DataError, match="a"):
        resume(directory, ["run.horizon=4 steps"], stream=io.StringIO())
    assert not (directory / "tokenizers").exists() and len(losses(directory)) == 3


def test_a_run_over_other_text_takes_the_tokenizer_of_a_former_one() -> None:
    base = trained(config_of({"a": text("one")}), "base")
    config = config_of({"b": text("two", {"run": "base"})})
    config["model"]["start"] = {"from": "base"}
    later = trained(config, "later")
    assert set(vocabularies(later)) == set(vocabularies(base))
    config["data"]["sources"]["b"]["tokenizer"] = BPE
    with pytest.raises(ConfigError) as caught:
        stackwise.assemble(stackwise.experiment(config))
    assert [problem.path for problem in caught.value.problems] == ["data.sources.b"]


def test_a_tokenizer_that_was_changed_is_refused() -> None:
    directory = trained(config_of({"a": text("one")}))
    (file,) = (directory / "tokenizers").glob("*/tokenizer.json")
    content = json.loads(file.read_text())
    content["added_tokens"][0]["lstrip"] = True
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=str(file)):
        resume(directory, ["run.horizon=3 steps"], stream=io.StringIO())
    with pytest.raises(UserError, match=str(file)):
        stackwise.make_plan(stackwise.experiment(config_of({"b": text("two", {"run": "out"})})), stackwise.discover())
    assert generate(directory, "the cat", GREEDY).text  # the final weights have their own


def test_a_run_without_a_tokenizer_is_named() -> None:
    arrays = {"use": "data.memory", "arrays": {"tokens": [1, 2, 3] * 40}}
    directory = trained(config_of({"a": arrays}), "arrays")
    assert not (directory / "tokenizers").exists()
    for wrong in ("arrays", "nowhere"):
        with pytest.raises(ConfigError) as caught:
            stackwise.make_plan(stackwise.experiment(config_of({"b": text("two", {"run": wrong})})), stackwise.discover())
        assert {problem.path for problem in caught.value.problems} == {"data.sources.b"}


def test_data_that_change_before_a_run_are_read_as_they_are_and_before_a_resume_are_refused() -> None:
    config = config_of({"a": text("one")})
    plan = stackwise.make_plan(stackwise.experiment(config), stackwise.discover())
    Path("texts/one.txt").write_text(TWO)
    machine = stackwise.assemble(plan)
    assert machine.data.fingerprints() == stackwise.assemble(stackwise.experiment(config)).data.fingerprints()
    directory = trained(config)
    Path("texts/one.txt").write_text(ONE)
    with pytest.raises(DataError, match="source 'a'"):
        resume(directory, ["run.horizon=3 steps"], stream=io.StringIO())


def test_a_folder_of_hugging_face_has_the_tokenizer_of_the_run_where_others_look_for_it() -> None:
    """The tokenizers library reads it, and gives the ids that the run was trained on."""
    import tokenizers

    directory = trained(config_of({"a": text("one")}))
    export(directory, Path("folder"), form="hf")
    (entry,) = read_tokenizers(directory).entries
    assert Path("folder/tokenizer.json").read_bytes() == entry.tokenizer.files["tokenizer.json"]
    ids = tokenizers.Tokenizer.from_file("folder/tokenizer.json").encode("the cat").ids
    assert list(generate(directory, "the cat", GREEDY).ids[: len(ids)]) == ids
    later = config_of({"b": text("two", {"file": "folder"})})
    assert vocabularies(trained(later, "later")) == [entry.tokenizer.vocabulary]
