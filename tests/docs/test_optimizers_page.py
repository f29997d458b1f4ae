"""`docs/reference/optimizers.md`: its blocks can be planned, and it tells every optimizer, option and default."""

from __future__ import annotations

import re
from math import isclose, isfinite
from pathlib import Path
from typing import Any

import attrs
import pytest
from tiny_walks import base, drive, losses, machine_of, memory, registry

from stackwise.config.reader import read_yaml
from stackwise.contracts.options import config_key

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "optimizers.md").read_text(encoding="utf-8")
OFFERED = {c.id: c for kind in ("optimizer", "reaction", "schedule") for c in registry().of_kind(kind) if c.provider == "optim"}
SECTIONS = dict(re.findall(r"^## (optim\.[\w-]+)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
COMMON = {"decay"}
AS_ANOTHER = {"optim.pytorch-optimizer": "optim.torch"}


def rows(section: str) -> dict[str, str]:
    """Option → its default, as written."""
    found = {}
    for names, defaults in re.findall(r"^\| (`[^|]+) \| ([^|]+) \|", section, re.MULTILINE):
        keys, written = re.findall(r"`(\w+)`", names), [each.strip(" `") for each in defaults.split(", ")]
        found |= dict(zip(keys, written if len(written) == len(keys) else written * len(keys), strict=True))
    return found


def test_every_optimizer_has_a_section_and_the_reaction_too() -> None:
    assert SECTIONS.keys() == OFFERED.keys()
    assert all(f"| `{name}` |" in PAGE for name, c in OFFERED.items() if c.kind == "optimizer")


@pytest.mark.parametrize("name", sorted(OFFERED))
def test_a_section_tells_every_option_its_default_and_whether_it_may_follow_time(name: str) -> None:
    section = SECTIONS[AS_ANOTHER.get(name, name)]
    written = rows(section)
    fields = {config_key(a): a for a in attrs.fields(OFFERED[name].load_options())}
    assert written.keys() - COMMON == fields.keys() - COMMON
    for key, said in written.items():
        default = fields[key].default
        if isinstance(default, bool) or not isinstance(default, int | float):
            assert said in (str(default), "required", "none", "the rack's", "machine epsilon", str(default).lower()), key
        else:
            assert isclose(float(said.replace("−", "-")), default), key
        line = next(line for line in section.splitlines() if line.startswith("|") and f"`{key}`" in line.split("|")[1])
        assert ("*t*" in line) == bool(fields[key].metadata.get("scheduled")), key


BLOCKS = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("text", BLOCKS, ids=[str(i) for i in range(len(BLOCKS))])
def test_a_block_trains_as_it_stands(text: str) -> None:
    config: dict[str, Any] = {key: value for key, value in base().items() if key != "optimizer"}
    config["data"]["sources"] = {"a": memory(heldout=0.2)}
    steps = losses(drive(machine_of({**config, **read_yaml(text, "docs/reference/optimizers.md").plain()})))
    assert len(steps) == 12 and all(isfinite(loss) for _, loss, _, _ in steps)
