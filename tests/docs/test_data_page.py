"""`docs/reference/data.md`: every YAML block can be laid on a config, and what it says can be counted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_walks import base, plan_of

import stackwise

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^## ([^\n]+)\n|^```(yaml|python)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def titled(language: str) -> list[tuple[str, str]]:
    """(title of the section, block)."""
    title, found = "", []
    for heading, kind, text in BLOCKS:
        title = heading or title
        if kind == language:
            found.append((f"{title}-{len(found)}", text))
    return found


def below() -> dict[str, Any]:
    """What the blocks are laid on: bytes, and one source that they may replace."""
    model = {
        "embedding": {"use": "transformer.token"},
        "rack": {"use": "transformer.decoder", "width": 8, "heads": 2, "stacks": [{"base": 1}]},
        "head": {"use": "transformer.lm"},
    }
    return base(data={"batch_size": 16, "seq_len": 128}, model=model)


def laid(title: str, text: str) -> stackwise.Plan:
    block = yaml.safe_load(text)
    config = below()
    if "sources" not in block.get("data", {}):
        config["data"]["sources"] = {"stdlib": {"use": "data.python-stdlib"}}
    return plan_of(config, **block)


@pytest.mark.parametrize(("title", "text"), titled("yaml"), ids=[title for title, _ in titled("yaml")])
def test_a_block_is_planned_as_it_stands(title: str, text: str) -> None:
    assert laid(title, text).schedule.steps >= 1


def test_the_blocks_speak_of_every_key_of_data() -> None:
    keys = {key for _, text in titled("yaml") for key in yaml.safe_load(text).get("data", {})}
    assert {"sources", "mix", "batch_size", "seq_len", "step_tokens", "transforms"} <= keys
    assert len(titled("yaml")) > 8


def test_the_lengths_of_the_second_section_are_those_written() -> None:
    plan = laid(*next(pair for pair in titled("yaml") if "step_tokens" in pair[1]))
    shapes = plan.schedule.phases[0].state.data.shapes  # type: ignore[union-attr]  # a plan's phases are declared
    assert [(shape.seq_len, shape.rows, max(rows or 0 for rows in shape.micro_batches)) for _, shape in shapes] == [
        (64, 128, 32),
        (128, 64, 32),
        (256, 32, 32),
    ]


def test_the_instants_of_a_phase_replace_those_before_it() -> None:
    plan = laid(*next(pair for pair in titled("yaml") if "over: phase" in pair[1]))
    long = plan.schedule.phases[1]
    assert [(start - long.start, shape.seq_len) for start, shape in long.state.data.shapes] == [(0, 128), (2, 256)]  # type: ignore[union-attr]  # declared


def test_the_code_makes_phases() -> None:
    (_, code), *_ = titled("python")
    config = {**below(), "data": {"batch_size": 2, "sources": {"stdlib": {"use": "data.python-stdlib"}}}}
    names: dict[str, Any] = {"stackwise": stackwise, "config": config}
    exec(code, names)
    names["experiment"].check()
    assert [phase.data.seq_len for phase in names["experiment"].phases] == [64, 128, 192, 256]
