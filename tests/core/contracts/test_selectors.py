"""Selectors against a matcher that compares segment by segment."""

from __future__ import annotations

import fnmatch
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackwise.contracts.selectors import compile_selector, covers, matching, select
from stackwise.errors import SelectorError

NAMES = [
    "embedding.weight",
    *(f"rack.stacks.base.{i}.{leaf}" for i in range(12) for leaf in ("norm.weight", "mlp.up.weight")),
    "rack.stacks.top.0.norm.weight",
    "rack.norm.weight",
    "rack.normal.weight",
    "head.weight",
]


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("embedding", ["embedding.weight"]),
        ("embedding.weight", ["embedding.weight"]),
        ("rack.stacks.top", ["rack.stacks.top.0.norm.weight"]),
        ("rack.norm", ["rack.norm.weight"]),
        ("rack.stacks.base.1", ["rack.stacks.base.1.norm.weight", "rack.stacks.base.1.mlp.up.weight"]),
        ("rack.stacks.base.9-11.norm", [f"rack.stacks.base.{i}.norm.weight" for i in (9, 10, 11)]),
        ("*.up.weight", [f"rack.stacks.base.{i}.mlp.up.weight" for i in range(12)]),
        ("*.norm*", [name for name in NAMES if ".norm" in name]),
        ("*", NAMES),
        ("rack.stacks.base.?.norm", [f"rack.stacks.base.{i}.norm.weight" for i in range(10)]),
        ("rack.stacks.*.0-0.norm", ["rack.stacks.base.0.norm.weight", "rack.stacks.top.0.norm.weight"]),
        ("head.", ["head.weight"]),
    ],
)
def test_a_selector_matches_what_it_names_and_what_lies_below(selector: str, expected: list[str]) -> None:
    assert select([selector], NAMES) == expected


segments = st.sampled_from(["rack", "stacks", "base", "0", "1", "10", "norm", "weight"])


@given(st.lists(st.lists(segments, min_size=1, max_size=5).map(".".join), min_size=1, max_size=6, unique=True), st.data())
def test_a_plain_prefix_matches_by_whole_segments(names: list[str], data: st.DataObject) -> None:
    prefix = ".".join(data.draw(st.sampled_from(names)).split(".")[: data.draw(st.integers(1, 5))])
    wanted = prefix.split(".")
    assert select([prefix], names) == [name for name in names if name.split(".")[: len(wanted)] == wanted]


@given(st.integers(0, 20), st.integers(0, 20))
def test_a_range_holds_its_ends_and_no_other_number(low: int, high: int) -> None:
    names = [f"base.{i}" for i in range(100)]
    if low > high:
        with pytest.raises(SelectorError, match="runs backwards"):
            compile_selector(f"base.{low}-{high}")
    else:
        assert select([f"base.{low}-{high}"], names) == [f"base.{i}" for i in range(low, high + 1)]


def test_several_selectors_are_a_union_in_the_order_of_the_names() -> None:
    assert select(["head", "embedding", "*.weight"], ["embedding.weight", "head.weight"]) == ["embedding.weight", "head.weight"]
    assert select([], NAMES) == []


@pytest.mark.parametrize("text", ["", " ", ".", "..", None, 3])
def test_what_is_no_selector_is_refused(text: object) -> None:
    with pytest.raises(SelectorError, match="is not a selector"):
        compile_selector(text)  # type: ignore[arg-type]  # what a config may hold


@pytest.mark.parametrize(
    ("selector", "near"), [("rack.stacks.bas", "rack.stacks.base"), ("embeding", "embedding"), ("zzz", "embedding, head, rack")]
)
def test_one_that_matches_nothing_is_told_its_neighbours(selector: str, near: str) -> None:
    with pytest.raises(SelectorError, match="matches no parameter") as caught:
        select(["head", selector], NAMES)
    assert near in str(caught.value)


@pytest.mark.parametrize("selector", ["a+b", "(a", "a|b", "[a]"])
def test_no_character_but_star_and_question_mark_has_a_meaning(selector: str) -> None:
    assert select([selector], [f"{selector}.weight", "aab.weight", "a.weight", "b.weight"]) == [f"{selector}.weight"]


@pytest.mark.parametrize("text", ["a.*.2-10.*weight", "*a*b*c*", "**x**", "*.1-3", "?*.5*-"])
@given(st.lists(st.text(alphabet="abc.1250-wx", min_size=1, max_size=12), min_size=1, max_size=20))
def test_globs_match_what_a_backtracking_glob_does(text: str, names: list[str]) -> None:
    """An independent reading: `fnmatch` of every spelt-out range, on the name and on each of its dotted prefixes."""

    def spelt(pattern: str) -> list[str]:
        for segment in pattern.split("."):
            low, dash, high = segment.partition("-")
            if dash and low.isdigit() and high.isdigit():
                return [pattern.replace(segment, str(n)) for n in range(int(low), int(high) + 1)]
        return [pattern]

    def expected(name: str) -> bool:
        parts = name.split(".")
        prefixes = [".".join(parts[: i + 1]) for i in range(len(parts))]
        return any(fnmatch.fnmatchcase(prefix, pattern) for prefix in prefixes for pattern in spelt(text))

    assert matching([text], names) == [name for name in names if expected(name)]


def test_a_range_longer_than_any_rack_is_refused() -> None:
    with pytest.raises(SelectorError, match="longer than a rack"):
        matching(["rack.0-999999999"], ["rack.0"])


@pytest.mark.parametrize(
    ("selectors", "narrower"),
    [
        (["a.0-3.*"], "a.0-1.*"),
        (["a.0-1", "a.2-3"], "a.0-3.x"),
        (["a"], "a"),
        (["a"], "a.*.b"),
        (["*"], "a.?"),
        (["a*"], "a?b"),
        (["*.norm*"], "*.norm.weight"),
        (["a?*"], "ab*"),
    ],
)
def test_a_wider_selector_covers_a_narrower_one(selectors: list[str], narrower: str) -> None:
    assert covers(selectors, narrower)


def test_one_covers_another_only_where_it_matches_all_that_the_other_does() -> None:
    globs = [text for text in words("a?*.", 3) if text.strip(". ")]
    matched = {glob: set(matching([glob], words("ab.", 4))) for glob in globs}
    covered = [(wider, narrower) for wider in globs for narrower in globs if covers([wider], narrower)]
    assert all(matched[narrower] <= matched[wider] for wider, narrower in covered) and len(covered) > len(globs)


def words(letters: str, longest: int) -> list[str]:
    """Every text of these letters up to a length."""
    return ["".join(word) for length in range(1, longest + 1) for word in product(letters, repeat=length)]
