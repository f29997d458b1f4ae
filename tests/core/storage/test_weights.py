"""Weights on disk: all or nothing, strictly by name, and never taken for whole when they are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stackwise.errors import DiskError, UserError
from stackwise.planes.model.state import load_named_tensors, named_tensors
from stackwise.storage import disk
from stackwise.storage.tensor_file import DTYPES
from stackwise.storage.weights import DESCRIPTION, WEIGHTS, read_weights, save_weights


def load_weights(model: nn.Module, directory: Path) -> dict[str, Any]:
    saved, about = read_weights(directory)
    load_named_tensors(model, saved, f"the weights in {directory}")
    return about


class Tied(nn.Module):
    """A tied pair, a persistent buffer and one that is not, and a tensor that is not contiguous."""

    def __init__(self, seed: int = 0, width: int = 4) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.a = nn.Linear(width, 3)
        self.b = nn.Linear(width, 3, bias=False)
        self.b.weight = self.a.weight
        self.turned = nn.Parameter(torch.randn(2, 5).t())
        self.register_buffer("mean", torch.randn(2))
        self.register_buffer("cache", torch.randn(2), persistent=False)


def test_a_description_with_infinities_is_json_and_read_again(tmp_path: Path) -> None:
    save_weights(named_tensors(Tied()), tmp_path / "final", {"config": {"limit": float("inf"), "others": [float("nan")]}})
    json.loads((tmp_path / "final" / DESCRIPTION).read_text(), parse_constant=pytest.fail)
    assert read_weights(tmp_path / "final")[1]["config"] == {"limit": "inf", "others": ["nan"]}


def test_what_was_saved_is_loaded_bit_for_bit_and_tied_parameters_lie_there_once(tmp_path: Path) -> None:
    one, two = Tied(0), Tied(1)
    cache = two.get_buffer("cache").clone()
    save_weights(named_tensors(one), tmp_path / "final", {"step": 7})
    about = load_weights(two, tmp_path / "final")
    assert list(about["tensors"]) == ["a.weight", "a.bias", "turned", "mean"] or set(about["tensors"]) == {
        "a.weight",
        "a.bias",
        "turned",
        "mean",
    }
    assert about["step"] == 7 and about["tensors"]["turned"] == {"shape": [5, 2], "dtype": "float32"}
    for name, tensor in named_tensors(one).items():
        assert torch.equal(tensor, named_tensors(two)[name])
    assert torch.equal(two.get_buffer("cache"), cache)
    assert two.b.weight is two.a.weight
    assert sorted(path.name for path in tmp_path.iterdir()) == ["final"]


def test_every_difference_is_named_at_once_and_nothing_is_loaded(tmp_path: Path) -> None:
    save_weights(named_tensors(Tied()), tmp_path / "w", {})
    other = nn.Module()
    other.a = nn.Linear(4, 2)
    other.extra = nn.Parameter(torch.zeros(1))
    other.mean = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    before = {name: tensor.clone() for name, tensor in named_tensors(other).items()}
    with pytest.raises(UserError) as caught:
        load_weights(other, tmp_path / "w")
    text = str(caught.value)
    for sentence in (
        "of another shape: a.weight is [3, 4] in the weights and [2, 4] in the model",
        "of another shape: a.bias",
        "missing in the weights: extra",
        "not in the model: turned",
        "of another dtype: mean is float32 in the weights and float64 in the model",
    ):
        assert sentence in text
    assert all(torch.equal(tensor, before[name]) for name, tensor in named_tensors(other).items())


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:50] + bytes([b[50] ^ 1]) + b[51:], lambda b: b"", lambda b: b + b"\0"])
def test_a_tampered_file_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    place = save_weights(named_tensors(Tied()), tmp_path / "w", {}) / WEIGHTS
    place.write_bytes(damage(place.read_bytes()))
    with pytest.raises(UserError, match="is damaged"):
        load_weights(Tied(), tmp_path / "w")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}"])
def test_a_description_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (save_weights(named_tensors(Tied()), tmp_path / "w", {}) / DESCRIPTION).write_text(text)
    with pytest.raises(UserError):
        load_weights(Tied(), tmp_path / "w")


def test_nothing_there_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no readable weights"):
        load_weights(Tied(), tmp_path / "nowhere")


class DiskFull(OSError):
    """What the n-th write meets."""


@pytest.mark.parametrize("broken", range(1, 9))
def test_a_save_that_fails_anywhere_leaves_the_old_one_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: int) -> None:
    """Every call that touches the disk fails once; the weights under the name are then the old ones or the new ones, whole."""
    old, new = Tied(0), Tied(1)
    save_weights(named_tensors(old), tmp_path / "w", {"which": "old"})
    count = 0

    def failing(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            nonlocal count
            count += 1
            if count == broken:
                raise DiskFull("no space left on device")
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for call in ("make_directory", "write_file", "sync_directory", "rename"):
            patch.setattr(disk, call, failing(getattr(disk, call)))
        failed = False
        try:
            save_weights(named_tensors(new), tmp_path / "w", {"which": "new"})
        except DiskError as error:
            assert isinstance(error.__cause__, DiskFull) and str(tmp_path / "w") in str(error)
            failed = True
    found = Tied(2)
    which = load_weights(found, tmp_path / "w")["which"]
    assert torch.equal(found.a.weight, {"old": old, "new": new}[which].a.weight)
    assert failed or which == "new"
    assert count < broken or failed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w"]


def test_an_old_one_is_replaced_by_the_new_one(tmp_path: Path) -> None:
    save_weights(named_tensors(Tied(0)), tmp_path / "w", {"step": 1})
    save_weights(named_tensors(Tied(1)), tmp_path / "w", {"step": 2})
    found = Tied(2)
    assert load_weights(found, tmp_path / "w")["step"] == 2
    assert torch.equal(found.a.weight, Tied(1).a.weight)


def test_the_files_are_data_and_nothing_is_executed(tmp_path: Path) -> None:
    place = save_weights(named_tensors(Tied()), tmp_path / "w", {"note": Path("x")})
    assert {path.name for path in place.iterdir()} == {WEIGHTS, DESCRIPTION}
    assert json.loads((place / DESCRIPTION).read_text())["note"] == "x"
    (place / WEIGHTS).write_bytes(b"cposix\nsystem\n(S'touch here'\ntR.")
    with pytest.raises(UserError, match="is damaged"):
        load_weights(Tied(), tmp_path / "w")


def test_equal_weights_are_equal_files(tmp_path: Path) -> None:
    """Whoever compares two runs compares the digests of their files."""
    untied = {"b": torch.ones(2), "a": torch.zeros(3)}
    for which, tensors in {"tied": named_tensors(Tied()), "untied": untied}.items():
        files = {(save_weights(tensors, tmp_path / f"{which}{i}", {}) / WEIGHTS).read_bytes() for i in range(12)}
        assert len(files) == 1


def test_every_dtype_comes_back_and_another_is_refused_by_name(tmp_path: Path) -> None:
    tensors = {str(dtype): torch.zeros(2, 3).to(dtype) for dtype in DTYPES}
    read, _ = read_weights(save_weights(tensors, tmp_path / "w", {}))
    assert {name: tensor.dtype for name, tensor in read.items()} == {name: tensor.dtype for name, tensor in tensors.items()}
    with pytest.raises(TypeError, match="odd"):
        save_weights({"odd": torch.zeros(2, dtype=torch.complex128)}, tmp_path / "x", {})


def test_tensors_that_overlap_and_those_that_others_may_read(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    place = save_weights({"whole": whole, "part": whole[2:4], "turned": whole.view(2, 3).t()}, tmp_path / "w", {})
    read, _ = read_weights(place)
    assert torch.equal(read["part"], whole[2:4]) and torch.equal(read["turned"], whole.view(2, 3).t())
    assert (place / WEIGHTS).stat().st_mode == (place / DESCRIPTION).stat().st_mode
