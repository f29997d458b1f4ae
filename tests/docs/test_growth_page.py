"""The reference and how-to page of growth: pictures are the operators' maps, blocks can be planned, every operator and option is named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import attrs
import pytest
import yaml
from longer_tokenizer import write_longer
from safetensors.torch import load_file
from tiny_walks import base, memory, plan_of, registry

from stackwise import BuildContext, GrowthRequest
from stackwise.cli import main
from stackwise.config import structure_options
from stackwise.contracts.options import config_key

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "growth.md").read_text(encoding="utf-8")
HOW_TO = (Path(__file__).parents[2] / "docs" / "how-to" / "grow.md").read_text(encoding="utf-8")
PICTURES = re.findall(r"^(\w+)((?: \w+ \w+| at \w+)?) +(\d+) → (\d+) +([\d· ]+)$", PAGE, re.MULTILINE)
FILES = ("folder/model.safetensors", "runs/more/final/weights.safetensors")
OFFERED = {c.component.name: c for kind in ("growth", "weight-adapter") for c in registry().of_kind(kind) if c.provider == "transformer"}


@pytest.mark.parametrize(("name", "option", "old", "new", "row"), PICTURES)
def test_a_picture_is_the_map_of_the_operator(name: str, option: str, old: str, new: str, row: str) -> None:
    written = dict([option.split()]) if option else {}
    options, _, problems = structure_options(OFFERED[name].load_options(), {**OFFERED[name].component.example, **written}, name)
    assert problems == ()
    operator = OFFERED[name].load_factory()(options, BuildContext(seed=0))
    blocks = operator.map_blocks(GrowthRequest(old_stacks={"base": int(old)}, new_stacks={"base": int(new)}))
    found = ["·" if origin.source is None else str(origin.source[1]) for origin in blocks.values()]
    assert found == row.split()


def test_every_operator_of_depth_has_a_picture() -> None:
    assert {name for name, *_ in PICTURES} == {"stack", "interleave", "middle", "identity", "gated"}


def test_every_operator_and_option_is_named() -> None:
    for name, component in OFFERED.items():
        assert f"`{name}`" in PAGE or f"`transformer.{name}`" in PAGE
        for field in attrs.fields(component.load_options()):
            assert f"`{config_key(field)}`" in PAGE


def test_the_page_says_of_each_operator_whether_it_keeps_the_function() -> None:
    rows = {name: keeps for name, _, keeps, _ in re.findall(r"^\| `([\w-]+)` \| (.*?) \| (yes|no)\b(.*)$", PAGE, re.MULTILINE)}
    for name, component in OFFERED.items():
        if component.kind == "growth":
            options, _, _ = structure_options(component.load_options(), component.component.example, name)
            operator = component.load_factory()(options, BuildContext(seed=0))
            assert rows[name] == ("yes" if operator.preserves_function else "no")


def _below(block: dict[str, Any]) -> dict[str, Any]:
    stacks = [{"top": 2}] if "one" in block["phases"] else [{"base": 2}]
    model = {
        "embedding": {"use": "transformer.token", "vocab": 256},
        "rack": {"use": "transformer.decoder", "width": 64, "heads": 4, "stacks": stacks},
        "head": {"use": "transformer.lm"},
    }
    return base(model=model, data={"sources": {"a": memory()}, "batch_size": 2, "seq_len": 4})


BLOCKS = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("text", BLOCKS, ids=[str(i) for i in range(len(BLOCKS))])
def test_a_block_is_planned_as_it_stands(text: str) -> None:
    block = yaml.safe_load(text)
    plan = plan_of(_below(block), **block)
    assert len(plan.schedule.phases) == len(block["phases"]) >= 2


def test_a_folder_gets_the_tokens_of_a_longer_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_longer(tmp_path)
    (text,) = re.findall(r"^```yaml title=more.yaml\n(.*?)^```$", HOW_TO, re.DOTALL | re.MULTILINE)
    Path("more.yaml").write_text(text, encoding="utf-8")
    for line in ("init --from folder --output model.yaml", "run more.yaml --output runs/more"):
        main(line.split(), standalone_mode=False)
    before, after = (load_file(f)["model.embed_tokens.weight" if "folder" in f else "embedding.weight"] for f in FILES)
    assert before.shape == (64, 8) and after.shape == (68, 8)
    apart = (after[64:] - before.mean(0)).abs().max()
    assert 0 < apart <= 29 * 1.01e-4  # from the mean, what AdamW can move in 29 steps
