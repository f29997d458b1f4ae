"""`docs/how-to/module.md` and its example: the code runs, and what it trains is in the plain module afterwards."""

from __future__ import annotations

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
CODE = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "how-to" / "module.md").read_text(encoding="utf-8"), re.DOTALL)


def test_the_page_trains_a_module_and_loads_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in CODE:
        exec(block, names)
    assert len(CODE) == 2 and len(names["net"].layers) == 4


def test_the_example_learns_its_spirals(tmp_path: Path) -> None:
    spec = spec_from_file_location("code_first_module", ROOT / "examples" / "code_first_module.py")
    assert spec is not None and spec.loader is not None
    example = module_from_spec(spec)
    spec.loader.exec_module(example)
    points, labels = example.make_loader().dataset.tensors
    net = example.main(tmp_path / "run")
    with torch.no_grad():
        right = example.accuracy(net(points), labels).mean()
    assert right > 0.95  # guessing is 0.5; two straight lines through the spirals reach about 0.7
