"""Width growth: the function is kept, moments are the true ratios of gradients, copies learn differently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import grown_models
import pytest
import torch
from grown_models import ASKED, FORMS, gradients, grow, language_model, logits, loss, tokens
from how_many import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from stackwise import BuildContext, CopyOf, GrowthRequest, Model
from stackwise.planes.model.parameter_map import fill_moment
from stackwise_providers_transformer import ff_growth, width_growth
from stackwise_providers_transformer.axes import uneven_shares
from stackwise_providers_transformer.ff_growth import build_widen_ff
from stackwise_providers_transformer.growth_options import WidenFFOptions, WidenOptions
from stackwise_providers_transformer.width_growth import build_widen

CONTEXT = BuildContext(seed=0)
WIDEN = build_widen(WidenOptions(), CONTEXT)
FF = {how: build_widen_ff(WidenFFOptions(how=how), CONTEXT) for how in ("zero-out", "split")}


def wider(form: Mapping[str, Any], times: int, **changes: Any) -> Model:
    """A model of the same form with the width and the heads times a number."""
    heads = {key: times * form[key] for key in ("heads", "kv_heads") if key in form}
    width = times * form.get("width", 8)
    return language_model(**{**form, "width": width, "heads": 2 * times, "seed": 5, **heads, **changes})


def grown(form: Mapping[str, Any], how: str) -> tuple[Model, Model, Mapping[str, CopyOf]]:
    """The model before and after, and the maps."""
    if how.startswith("widen"):
        old = language_model(**form)
        changes = {"widen x2": {}, "widen x3": {}, "widen with ff": {"ff": 133}}[how]
        new = wider(form, 3 if how == "widen x3" else 2, **changes)
        return old, new, grow(old, new, WIDEN)
    old = language_model(**{**form, "ff": 12})
    new = language_model(**{**form, "ff": 31, "seed": 5})
    return old, new, grow(old, new, FF[how])


def double(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grown_models, "PRECISION", torch.float64)


WAYS = ["widen x2", "widen x3", "widen with ff", "zero-out", "split"]


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_function_is_kept(form: dict[str, Any], how: str) -> None:
    old, new, _ = grown(form, how)
    with torch.no_grad():
        before = logits(old, tokens())
        size = float(before.abs().max())
        assert float((logits(new, tokens()) - before).abs().max()) < 1e-6 * max(size, 1)
        assert size > 0.3


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_function_is_kept_exactly_but_for_rounding(form: dict[str, Any], how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    double(monkeypatch)
    old, new, _ = grown(form, how)
    with torch.no_grad():
        torch.testing.assert_close(logits(new, tokens()), logits(old, tokens()), rtol=0, atol=1e-13)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_moments_are_mapped_by_the_true_ratio_of_gradients(form: dict[str, Any], how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    double(monkeypatch)
    old, new, maps = grown(form, how)
    before, after = gradients(old, tokens()), gradients(new, tokens())
    assert any(gradient.abs().max() > 1e-3 for gradient in before.values())
    for name, gradient in after.items():
        origin = maps.get(name) or CopyOf(source=name)
        for power in (1, 2):
            expected = torch.full_like(gradient, torch.nan)
            fill_moment(expected, {source: each**power for source, each in before.items()}, origin, power)
            found = torch.where(_has_source(origin, gradient), gradient**power, expected)
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-14, msg=lambda text, name=name: f"{name}: {text}")


@settings(max_examples=examples(30), deadline=None)
@given(
    times=st.integers(2, 4),
    groups=st.integers(1, 2),
    kv_heads=st.integers(1, 2),
    features=st.sampled_from([2, 4]),
    ff=st.tuples(st.integers(3, 9), st.integers(0, 20)),
    norm=st.sampled_from(["rmsnorm", "layernorm"]),
    mlp=st.sampled_from(["swiglu", "gelu"]),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_any_sizes_keep_the_function_and_every_ratio(
    times: int, groups: int, kv_heads: int, features: int, ff: tuple[int, int], norm: str, mlp: str, flags: tuple[bool, bool, bool]
) -> None:
    tied, bias, qk_norm = flags
    form = {"norm": norm, "mlp": mlp, "tied": tied, "bias": bias, "qk_norm": qk_norm, "stacks": [{"a": 1}, {"b": 1}]}
    heads = groups * kv_heads
    old = language_model(**form, width=heads * features, heads=heads, kv_heads=kv_heads, ff=ff[0]).double()
    grown = {"width": times * heads * features, "heads": times * heads, "kv_heads": times * kv_heads, "ff": sum(ff)}
    new = language_model(**form, **grown, seed=5).double()
    maps = grow(old, new, WIDEN)
    with torch.no_grad():
        torch.testing.assert_close(logits(new, tokens()), logits(old, tokens()), rtol=0, atol=1e-12)
    before = gradients(old, tokens())
    for name, gradient in gradients(new, tokens()).items():
        expected = torch.empty_like(gradient)
        fill_moment(expected, before, maps.get(name) or CopyOf(source=name), 1)
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-13, msg=lambda text, name=name: f"{name}: {text}")


def _has_source(origin: CopyOf, tensor: torch.Tensor) -> torch.Tensor:
    known = torch.ones_like(tensor, dtype=torch.bool)
    for dim, index in origin.index.items():
        shape = [-1 if i == dim else 1 for i in range(tensor.dim())]
        known &= (torch.tensor(index) >= 0).view(shape)
    return known


def _train(model: Model, steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    for step in range(steps):
        optimizer.zero_grad()
        loss(model, tokens(seed=step)).backward()
        optimizer.step()


def _difference_of_copies(tensor: torch.Tensor, origin: CopyOf) -> float:
    """The smallest difference between two copies of one old position, along any grown dimension; in units of the tensor's own size."""
    smallest = float("inf")
    for dim, index in origin.index.items():
        factors = origin.factors.get(dim, (1.0,) * len(index))
        slices = tensor.detach().movedim(dim, 0) / torch.tensor(factors, dtype=tensor.dtype).view(-1, *[1] * (tensor.dim() - 1))
        for position in set(index):
            copies = [slices[i] for i, source in enumerate(index) if source == position]
            for i, one in enumerate(copies):
                smallest = min([smallest, *(float((one - other).abs().max() / one.abs().max()) for other in copies[:i])])
    return smallest


def _apart(new: Model, maps: Mapping[str, CopyOf]) -> list[float]:
    """Of every matrix that holds copies. A vector may hold what nothing depends on: a bias of keys."""
    matrices = {name: new.get_parameter(name) for name in maps if new.get_parameter(name).dim() == 2}
    return [_difference_of_copies(matrix, maps[name]) for name, matrix in matrices.items()]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("how", ["widen x2", "widen x3", "split"])
def test_all_copies_differ_after_twenty_steps(form: dict[str, Any], how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    double(monkeypatch)
    _, new, maps = grown(form, how)
    assert max(_apart(new, maps)) < 1e-14
    _train(new, 20)
    assert min(_apart(new, maps)) > 1e-5


@pytest.mark.parametrize("how", ["widen x2", "widen x3"])
def test_equal_shares_would_keep_copies_equal(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def even(index: Sequence[int]) -> tuple[float, ...]:
        return tuple(1 / list(index).count(position) for position in index)

    double(monkeypatch)
    monkeypatch.setattr(ff_growth, "uneven_shares", even)
    monkeypatch.setattr(width_growth, "uneven_shares", even)
    _, new, maps = grown({}, how)
    _train(new, 20)
    assert max(_apart(new, maps)) < 1e-10


def test_shares_add_up_and_differ() -> None:
    index = (0, 1, 2, 0, 1, 0)
    shares = uneven_shares(index)
    for position in range(3):
        own = [share for share, source in zip(shares, index, strict=True) if source == position]
        assert sum(own) == pytest.approx(1) and len(set(own)) == len(own)
    assert uneven_shares((0, 0)) == pytest.approx((1 / 3, 2 / 3))


def test_fresh_features_are_those_of_the_module_and_are_read_by_nothing() -> None:
    old, new = language_model(ff=12), language_model(ff=31, seed=5)
    drawn = new.get_parameter("rack.stacks.base.0.mlp.up.weight").detach().clone()
    grow(old, new, FF["zero-out"])
    up, down = (new.get_parameter(f"rack.stacks.base.0.mlp.{name}.weight").detach() for name in ("up", "down"))
    assert torch.equal(up[12:], drawn[12:]) and up[12:].any()
    assert not down[:, 12:].any()
    _train(new, 2)
    assert down[:, 12:].any()


SHAPES = {name: tuple(p.shape) for name, p in language_model().named_parameters()}


def _shapes(model: Model) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("operator", "new", "says"),
    [
        (WIDEN, language_model(), r"it stays 8: take 'widen-ff'"),
        (WIDEN, language_model(width=12), r"12 is not a multiple of 8: take 16"),
        (WIDEN, language_model(width=4), r"4 is not a multiple of 8: take 16"),
        (WIDEN, wider({}, 2, ff=10), r"24 hidden features and would have 10: .* set 'ff' to 24 or more"),
        (WIDEN, wider({}, 2, kv_heads=2), r"set 'heads', and 'kv_heads' where it is given, to 2 times what they were"),
        (WIDEN, wider({}, 2, vocab=30), r"embedding.weight goes from \[19, 8\] to \[30, 16\], and 'widen' can only multiply the width"),
        (FF["split"], language_model(), r"'widen-ff' has nothing to do: set 'ff'"),
        (FF["zero-out"], language_model(ff=8), r"24 hidden features and would have 8"),
        (FF["split"], wider({}, 2), r"goes from .* 'widen-ff' can only add hidden features"),
    ],
)
def test_what_cannot_be_done_is_refused(operator: Any, new: Model, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        operator.map_parameters(SHAPES, _shapes(new), ASKED)


def test_heads_that_do_not_multiply_show_in_their_norms() -> None:
    with pytest.raises(ValueError, match=r"from 4 to 8: multiply 'heads' with the width"):
        WIDEN.map_parameters(_shapes(language_model(qk_norm=True)), _shapes(language_model(qk_norm=True, width=16)), ASKED)


def test_a_rack_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"knows the parameters of transformer\.decoder"):
        WIDEN.map_parameters({"rack.a": (2,)}, {"rack.a": (4,)}, ASKED)
    name = "rack.stacks.base.0.attention.output.weight"
    with pytest.raises(ValueError, match=rf"{name} goes from \[2, 2\] to \[4, 4\], and 'widen' can only"):
        WIDEN.map_parameters({"rack.norm.weight": (2,), name: (2, 2)}, {"rack.norm.weight": (4,), name: (4, 4)}, ASKED)


@pytest.mark.parametrize("operator", [WIDEN, *FF.values()])
def test_blocks_are_kept_and_none_is_added(operator: Any) -> None:
    kept = operator.map_blocks(GrowthRequest(old_stacks={"a": 2, "b": 1}, new_stacks={"b": 1, "a": 1}))
    assert {block: origin.source for block, origin in kept.items()} == {("b", 0): ("b", 0), ("a", 0): ("a", 0)}
    with pytest.raises(ValueError, match=r"stack 'a' has new ones: grow its depth in a phase of its own"):
        operator.map_blocks(GrowthRequest(old_stacks={"a": 2}, new_stacks={"a": 3}))
    assert operator.preserves_function is True
