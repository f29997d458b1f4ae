"""Tables and sentences within a width."""

from __future__ import annotations

import pytest

from stackwise.reports.terminal import table, wrap

ROWS = [["name", "first", "second", "third"], ["a", "1", "22", "333"], ["bb", "4444444444", "5", "6"]]


def test_a_table_that_fits_is_one_table() -> None:
    assert table(ROWS, 200) == table(ROWS)
    assert [line.split() for line in table(ROWS)][2:] == [["a", "1", "22", "333"], ["bb", "4444444444", "5", "6"]]


@pytest.mark.parametrize("columns", range(18, 40))
def test_a_table_that_does_not_fit_is_several_each_with_the_names_in_front(columns: int) -> None:
    lines = table(ROWS, columns)
    assert max(map(len, lines)) <= columns
    blocks = "\n".join(lines).split("\n\n")
    cells = [[line.split() for line in block.splitlines()] for block in blocks]
    assert all([row[0] for row in block][::2] == ["name", "a"] and block[3][0] == "bb" for block in cells)
    for i, row in enumerate((ROWS[0], *ROWS[1:])):
        place = i if i == 0 else i + 1  # the rule stands below the header
        assert [cell for block in cells for cell in block[place][1:]] == row[1:]


@pytest.mark.parametrize("columns", [24, 40, 80])
def test_a_cell_that_is_too_wide_goes_on_below_itself(columns: int) -> None:
    text = "one, two, three, four and a_word_of_forty_letters_that_is_cut_in_two"
    lines = table([["key", "value"], ["a_name_of_a_key_as_long_as_this", text], ["b", "5"]], columns)
    assert max(map(len, lines)) <= columns
    edge = lines[1].index(" ")  # of the rule: columns end there
    left, right = ["".join("".join(line[a:b].split()) for line in lines[2:]) for a, b in ((0, edge), (edge, columns))]
    assert (left, right) == ("a_name_of_a_key_as_long_as_thisb", "".join(text.split()) + "5")


@pytest.mark.parametrize("columns", [40, 61, 80])
def test_a_long_line_goes_on_below_with_a_deeper_margin(columns: int) -> None:
    text = "  reads " + "one two three four five " * 12 + "end\nshort"
    lines = wrap(text, columns).split("\n")
    assert max(map(len, lines)) <= columns and lines[-1] == "short"
    assert [len(line) - len(line.lstrip()) for line in lines[:-1]] == [2, *[6] * (len(lines) - 2)]
    assert " ".join(" ".join(lines[:-1]).split()) == " ".join(text.split("\n")[0].split())
    assert wrap(text, None) == text
