"""What `stackwise init` writes reads back as what the folder says, and its notes stay comments."""

from __future__ import annotations

import pytest
import yaml

from stackwise.cli.init import _comment, _flow


@pytest.mark.parametrize("value", ["whole", "no", "null", "true", "off", "a.b-c", "a: b", 3, 0.5, [1, "yes"], {"kind": "no"}])
def test_a_value_reads_back_as_itself(value: object) -> None:
    assert yaml.safe_load(_flow(value)) == value


def test_a_note_with_lines_of_its_own_stays_one_comment() -> None:
    assert _comment("dropout 'x\nmodel: {}\u202e'") == "# dropout 'x model: {}\\u202e'"
