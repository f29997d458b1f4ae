"""The weights a run begins from, and the formats that read and write folders of other tools."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch

from stackwise.config import structure_options
from stackwise.contracts.answers import calling, expect, expect_artifact
from stackwise.contracts.components import BuildContext, Kind
from stackwise.contracts.formats import NotesFolders, StoredModel, WeightFormat
from stackwise.contracts.options import config_key, dimension_fields
from stackwise.curriculum.parts import Part
from stackwise.errors import UserError, did_you_mean
from stackwise.host.provider import Registered
from stackwise.host.registry import Registry, blaming
from stackwise.plan import Plan
from stackwise.planes.model.difference import WEIGHT_ADAPTERS
from stackwise.storage.pretrained import is_ours, read_pretrained
from stackwise.storage.weights import WEIGHTS

ROLES: tuple[Kind, ...] = ("embedding", "rack", "head")
_ANYTHING = BuildContext(seed=0)


def read_start(plan: Plan) -> Mapping[str, torch.Tensor]:
    """The tensors that `model.start` names.

    Raises:
        UserError: nothing there that can be read, or a folder of another model than the config declares.
        ProviderError: a format that fails.
    """
    start = plan.experiment.phases[0].model.start
    assert start is not None  # callers check
    path = Path(start.from_)
    if plan.start_format is None and (not path.is_dir() or is_ours(path)):
        if start.differs:
            raise UserError("model.start.differs: weights with canonical names say nothing of options: leave it out")
        return read_pretrained(path)
    try:
        stored = read_folder(path, plan.registry, plan.start_format)
    except UserError as error:
        raise UserError(f"model.start.from: {error}") from None
    _check_same(plan, stored, path, start.differs)
    return _divided(plan, stored)


def start_notes(plan: Plan) -> tuple[str, ...]:
    """What of the folder that a run begins from is not taken over, from its small files; empty where no format says anything, and where
    the folder is refused. The message comes when it is read, because a resumed run may not need it any more.

    Raises:
        ProviderError: a format that fails.
    """
    start = plan.experiment.phases[0].model.start
    if start is None or not (path := Path(start.from_)).is_dir() or (plan.start_format is None and is_ours(path)):
        return ()
    try:
        with blaming(plan.registry.providers):
            id, form = _format_of(path, plan.registry, plan.start_format)
            with calling(id, "notes"):
                notes: tuple[str, ...] = form.notes(path) if isinstance(form, NotesFolders) else ()
                expect(isinstance(notes, tuple | list) and all(isinstance(note, str) for note in notes), notes, "a tuple of sentences")
    except UserError:
        return ()
    return tuple(notes)


def read_folder(folder: Path, registry: Registry, part: Any = None) -> StoredModel:
    """The model of a folder.

    Args:
        folder: in a format that a provider knows.
        registry: the installed components.
        part: the format as a plan declares it; the one that recognises the folder when left out.

    Raises:
        UserError: no folder, no format or several that recognise it, or the format refuses it.
        ProviderError: a format that fails.
    """
    if not folder.is_dir():
        missing = f"{folder} is a file" if folder.exists() else f"there is no folder {folder}"
        raise UserError(f"{missing}: give the path of a folder on this machine; nothing is downloaded")
    with blaming(registry.providers):
        id, form = _format_of(folder, registry, part)
        with calling(id, "read"):
            stored = form.read(folder)
            expect(isinstance(stored, StoredModel), stored, "a StoredModel")
            model, tensors = stored.model, stored.tensors
            expect(isinstance(model, Mapping) and set(ROLES) <= set(model), model, f"as its model a map with {', '.join(ROLES)}")
            expect(isinstance(tensors, Mapping), tensors, "as its tensors a map")
        return stored


def _format_of(folder: Path, registry: Registry, part: Any) -> tuple[str, WeightFormat]:
    component = recognising(folder, registry) if part is None else registry.get("format", part.id)
    return component.id, built_format(component, None if part is None else part.options_at(0.0))


def built_format(component: Registered, options: Any = None) -> WeightFormat:
    """A format, with its options at their defaults where none are given.

    Raises:
        WrongAnswer: its factory built none.
    """
    with calling(component.id, "its factory"):
        form: WeightFormat = component.build(component.load_options()() if options is None else options, _ANYTHING)
        expect_artifact("format", form)
    return form


def _recognises(component: Registered, folder: Path) -> bool:
    with calling(component.id, "recognises"):
        answer = built_format(component).recognises(folder)
        expect(isinstance(answer, bool), answer, "True or False")
    return answer


def recognising(folder: Path, registry: Registry) -> Registered:
    """The one format that recognises a folder.

    Raises:
        UserError: none does, or several.
    """
    formats = registry.of_kind("format")
    with blaming(registry.providers):
        names = [each for each in formats if _recognises(each, folder)]
    if len(names) == 1:
        return names[0]
    if names:
        raise UserError(f"{folder} may be of the formats {' and '.join(each.id for each in names)}: say which with `format: {{use: …}}`")
    installed = ", ".join(each.id for each in formats) or "none"
    raise UserError(
        f"there are no weights at {folder}: no installed format ({installed}) recognises the folder, and {folder / WEIGHTS} is not a file; "
        "give a run directory, a directory of weights, a safetensors file, or a folder of such a format"
    )


def format_named(name: str, registry: Registry) -> tuple[Registered, WeightFormat]:
    """A format by its id, or by the part of it after the dot; its options at their defaults.

    Raises:
        UserError: no format of that name, or several.
    """
    formats = registry.of_kind("format")
    matches = [each for each in formats if name in (each.id, each.id.partition(".")[2])]
    if len(matches) != 1:
        hint = did_you_mean(name, [each.id for each in formats])
        raise UserError(f"'{name}' names {'several formats' if matches else 'no installed format'}{hint}")
    with blaming(registry.providers):
        return matches[0], built_format(matches[0])


def options_of(model: Mapping[str, Mapping[str, Any]], registry: Registry) -> dict[Kind, tuple[str, Any]]:
    """Role → component and options of a `model` section, sizes left out filled from the parts that have them.

    Raises:
        UserError: options that a component refuses.
    """
    options: dict[Kind, tuple[str, Any]] = {}
    sizes: dict[str, int] = {}
    for role in ROLES:
        node = dict(model[role])
        use = node.pop("use")
        values, _, problems = structure_options(registry.get(role, use).load_options(), node, f"model.{role}")
        if problems:
            raise UserError("; ".join(map(str, problems)))
        options[role] = (use, values)
        sizes |= {dim: value for name, dim in dimension_fields(type(values)).items() if (value := getattr(values, name)) is not None}
    return {role: (use, attrs.evolve(values, **_open(values, sizes))) for role, (use, values) in options.items()}


def adapters_of(adapters: Mapping[str, Mapping[str, Any]], registry: Registry) -> dict[str, tuple[str, Any, tuple[str, ...]]]:
    """Name → component, options and selectors of weight adapters as a folder holds them.

    Raises:
        UserError: options that a component refuses.
    """
    made = {}
    for name, adapter in adapters.items():
        use, options = adapter["use"], {key: value for key, value in adapter.items() if key not in ("use", "select")}
        values, _, problems = structure_options(
            registry.get("weight-adapter", use).load_options(), options, f"model.weight_adapters.{name}"
        )
        if problems:
            raise UserError("; ".join(map(str, problems)))
        made[name] = use, values, tuple(adapter["select"])
    return made


def _open(options: Any, sizes: Mapping[str, int]) -> dict[str, int]:
    named = dimension_fields(type(options)).items()
    return {name: sizes[dim] for name, dim in named if getattr(options, name) is None and dim in sizes}


def _check_same(plan: Plan, stored: StoredModel, folder: Path, meant: tuple[str, ...]) -> None:
    """Refuse a declared model that would compute something else with the folder's weights, but for options that are meant to differ.

    Raises:
        UserError: the model differs; the message names every difference.
    """
    differences = dict(_differences(plan, stored, folder))
    for name in meant:
        if name not in differences:
            raise UserError(f"model.start.differs: {name} is as in {folder}, or no option that the folder has: leave it out")
    if sentences := [sentence for name, sentence in differences.items() if name not in meant]:
        raise UserError(
            f"the model of {folder} is not the one declared; write its options (`stackwise init --from {folder}` prints them), or name in "
            "model.start.differs what is meant to differ:\n  " + "\n  ".join(sentences)
        )


def _differences(plan: Plan, stored: StoredModel, folder: Path) -> Iterator[tuple[str, str]]:
    """`<part>.<option>` → the sentence, for every option of the folder that is declared otherwise."""
    state = plan.schedule.phases[0].state
    assert state is not None  # a plan's phases are declared
    for role in ROLES:
        node, part = dict(stored.model[role]), getattr(state.model, role)
        if (use := node.pop("use")) != part.id:
            yield f"{role}.use", f"{role}.use is {part.id}, and {use} in the folder"
            continue
        options, _, problems = structure_options(plan.registry.get(role, use).load_options(), node, f"model.{role}")
        if problems:
            raise UserError(f"{folder}: " + "; ".join(map(str, problems)))
        for attribute in attrs.fields(type(options)):
            name, rules = f"{role}.{config_key(attribute)}", attribute.metadata
            left_open = config_key(attribute) not in node and (rules.get("dimension") or rules.get("follows_task"))
            if rules.get("scheduled") or left_open or name in stored.free:
                continue
            theirs, ours = getattr(options, attribute.name), getattr(part.options, attribute.name)
            if rules.get("stacks") and sum(stack.blocks for stack in theirs) == sum(stack.blocks for stack in ours):
                continue  # the same blocks, divided otherwise
            if theirs != ours and _written_out(options, attribute.name) != _written_out(part.options, attribute.name):
                yield name, f"{name} is {ours}, and {theirs} in the folder"
    declared = state.model.weight_adapters
    for name, (use, options, _) in adapters_of(stored.weight_adapters, plan.registry).items():
        yield from _adapter_differences(f"weight_adapters.{name}", declared[name].part if name in declared else None, use, options)


def _written_out(options: Any, name: str) -> Any:
    """An option, its default written out where the class can do that: a size is the same whether it is written or left to its default."""
    return getattr(options.written_out() if hasattr(options, "written_out") else options, name)


def _adapter_differences(path: str, part: Part | None, use: str, theirs: Any) -> Iterator[tuple[str, str]]:
    """What is declared otherwise of a weight adapter of the folder; where it stands is what the names of its tensors say."""
    if part is None or part.id != use:
        yield path, f"{path} is {'not declared' if part is None else part.id}, and {use} in the folder"
        return
    for attribute in attrs.fields(type(theirs)):
        ours, there = getattr(part.options, attribute.name), getattr(theirs, attribute.name)
        if ours != there and not attribute.metadata.get("scheduled"):
            name = f"{path}.{config_key(attribute)}"
            yield name, f"{name} is {ours}, and {there} in the folder"


def _divided(plan: Plan, stored: StoredModel) -> Mapping[str, torch.Tensor]:
    """The tensors of a folder, its blocks under the names of the declared stacks: block by block in forward order."""
    state = plan.schedule.phases[0].state
    assert state is not None  # a plan's phases are declared
    ours: Any = state.model.rack.options
    use, theirs = options_of(stored.model, plan.registry)["rack"]
    if use != state.model.rack.id or not hasattr(ours, "to_spec"):
        return stored.tensors
    pairs = zip(_block_names(ours.to_spec()), _block_names(theirs.to_spec()), strict=False)
    renamed = {own: old for own, old in pairs if own != old}
    return Divided(stored.tensors, renamed) if renamed else stored.tensors


def _block_names(spec: Any) -> list[str]:
    path = f"rack.{spec.block_path}."
    return [path.format(stack=stack, index=index) for stack, blocks in spec.stacks.items() for index in range(blocks)]


def _renamed(name: str, own: Mapping[str, str]) -> str:
    """A tensor's name where blocks are called otherwise, also of an adapter beside a matrix of a block."""
    adapter = name.split(".")[1] if name.startswith(WEIGHT_ADAPTERS) else None
    before = "" if adapter is None else f"{WEIGHT_ADAPTERS}{adapter}."
    path = name.removeprefix(before)
    return before + next((own[old] + path[len(old) :] for old in own if path.startswith(old)), path)


class Divided(Mapping[str, torch.Tensor]):
    """Tensors whose blocks are called otherwise.

    Args:
        tensors: as a format reads them.
        blocks: our path of a block, with a dot after it → theirs.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], blocks: Mapping[str, str]) -> None:
        self._tensors = tensors
        own = {old: ours for ours, old in blocks.items()}
        named = {name: _renamed(name, own) for name in tensors}
        self._of = {ours: theirs for theirs, ours in named.items()}
        if (shapes := getattr(tensors, "shapes", None)) is not None:
            self.shapes = {ours: shapes[theirs] for ours, theirs in self._of.items()}

    def copy_into(self, name: str, target: torch.Tensor) -> torch.dtype:
        """Write a tensor where it belongs, in the way of the format if it has one."""
        if (write := getattr(self._tensors, "copy_into", None)) is not None:
            dtype: torch.dtype = write(self._of[name], target)
            return dtype
        tensor = self[name]
        target.copy_(tensor)
        return tensor.dtype

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[self._of[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._of)

    def __len__(self) -> int:
        return len(self._of)
