"""Formats: what is written is recognised, and read back as the same model; other folders are left to others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from stackwise.assembly.outside import build_module
from stackwise.assembly.start import ROLES, options_of
from stackwise.conformance.building import artifact_of
from stackwise.conformance.subject import SEED, Broken, Subject, must
from stackwise.contracts.components import BuildContext, Kind
from stackwise.curriculum.parts import Part
from stackwise.errors import UserError
from stackwise.host.discovery import discover
from stackwise.planes.model.module import Model
from stackwise.planes.model.state import named_tensors


def check_format_round_trip(subject: Subject) -> None:
    """The example model of a format is written into a folder that the format recognises and reads back: the same options, and tensors of
    the same names and values.

    Usual cause: a matrix turned in one direction only; an option that changes what the model computes and is not written; a tied tensor
    read under its second name.
    """
    form = artifact_of(subject)
    options = _options(form.example())
    model = _model(options)
    with TemporaryDirectory() as place:
        folder = Path(place)
        form.write(model, folder, None, {})
        must(bool(form.recognises(folder)), "it does not recognise the folder that it wrote")
        stored = form.read(folder)
        again = _options(stored.model)
        for role in ROLES:
            must(again[role] == options[role], f"the {role} was written as {options[role]}, and reads back as {again[role]}")
        expected, shapes = named_tensors(model), getattr(stored.tensors, "shapes", None)
        must(
            set(stored.tensors) == set(expected), f"tensors are missing or added: {', '.join(sorted(set(expected) ^ set(stored.tensors)))}"
        )
        for name, tensor in expected.items():
            must(torch.equal(stored.tensors[name], tensor), f"{name} reads back with other values")
            must(shapes is None or tuple(shapes[name]) == tuple(tensor.shape), f"the shape that `shapes` gives of {name} is not its own")


def check_format_leaves_others_alone(subject: Subject) -> None:
    """A folder without files, and one whose files are cut short, is refused with a sentence; an empty one is not recognised.

    Usual cause: `recognises` opens a file that need not be there; `read` lets a library's exception through.
    """
    form = artifact_of(subject)
    with TemporaryDirectory() as place:
        folder = Path(place)
        must(not form.recognises(folder), "it recognises an empty folder, and so would take any")
        written(form, folder)
        for file in [path for path in folder.rglob("*") if path.is_file()]:
            content = file.read_bytes()
            file.write_bytes(content[: len(content) // 2])
        form.recognises(folder)
        try:
            stored = form.read(folder)
            for name in stored.tensors:
                _ = stored.tensors[name]
        except UserError:
            return
        except Exception as error:
            must(False, f"for files that are cut short, it raises {type(error).__name__}: {error}, not a UserError")
        must(False, "it reads files that are cut short as if they were whole")


def written(form: Any, folder: Path) -> Path:
    """The folder, with the example model of a format in it."""
    form.write(_model(_options(form.example())), folder, None, {})
    return folder


def _options(model: Mapping[str, Mapping[str, Any]]) -> dict[Kind, tuple[str, Any]]:
    try:
        return options_of(model, discover())
    except UserError as error:
        raise Broken(f"its model is refused: {error}") from error


def _model(options: Mapping[Kind, tuple[str, Any]]) -> Model:
    """The model, every parameter drawn anew, so that none has a value that others have too."""
    registry, context = discover(), BuildContext(seed=SEED)
    parts = {role: build_module(Part(kind=role, id=use, options=made), registry, context) for role, (use, made) in options.items()}
    model = Model(parts["embedding"], parts["rack"], parts["head"])
    model.wire()
    generator = torch.Generator().manual_seed(SEED)
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return model.eval()
