"""Which old block each block of a grown rack comes from, as its growth operator says."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from attrs import frozen

from stackwise.config import PhaseConfig
from stackwise.contracts.components import BuildContext, Built
from stackwise.contracts.growth import BlockOrigin, GrowthOperator, GrowthRequest
from stackwise.contracts.specs import RackSpec
from stackwise.curriculum.parts import Part
from stackwise.curriculum.states import ModelState
from stackwise.errors import Problem, ProviderError
from stackwise.plan.parts import Draft, Drafts

BlockMap = Mapping[tuple[str, int], BlockOrigin]


@frozen
class Growing:
    """The growth operator of a boundary."""

    draft: Draft
    part: Part
    start: float
    """Run time at the boundary."""
    end: float
    """Run time at the end of the phase that it opens."""

    def operator(self, drafts: Drafts) -> GrowthOperator | None:
        """The operator; None if it cannot be built or is not an operator, with the reason among the faults."""
        draft = self.draft
        operator: GrowthOperator
        if isinstance(draft.given, Built):
            operator = draft.given.make(**self.part.options_at(0.0))
        elif draft.registered is None:
            operator = draft.given
        else:
            try:
                operator = draft.registered.build(self.part.options_at(0.0), BuildContext(seed=0))
            except ProviderError as error:
                drafts.faults.append(error)
                return None
            except Exception as error:
                drafts.faults.append(ProviderError(f"{draft.label} could not be built: {type(error).__name__}: {error}"))
                return None
        try:
            keeps: object = getattr(operator, "preserves_function", None)
        except Exception as error:
            keeps = f"{type(error).__name__}: {error}"
        if keeps is None or not hasattr(operator, "map_blocks"):
            what = f"{draft.label} is not a growth operator: a {type(operator).__name__} without map_blocks or preserves_function"
            drafts.faults.append(ProviderError(what))
            return None
        if not isinstance(keeps, bool):
            drafts.faults.append(ProviderError(f"{draft.label}: preserves_function gave {keeps!r}, and true or false is expected"))
            return None
        return operator

    def check_gate(self, preserves_function: bool, blocks: BlockMap, drafts: Drafts) -> None:
        """A gate that preserves the function begins at 0. Every gate ends at 1, so that it can be removed without a change."""
        if not any(origin.gated for origin in blocks.values()):
            return
        gate, path = self.part.curves.get("gate"), f"{self.draft.path}.gate"
        if gate is None:
            drafts.faults.append(ProviderError(f"{self.draft.label} gates blocks, but has no option `gate` that may follow time"))
        elif preserves_function and gate(self.start) != 0.0:
            message = f"the gate stands at {gate(self.start):g} where its phase begins, so that the function jumps: let it rise from 0"
            drafts.problems.append(Problem(f"{message}, as in {{linear: {{from: 0, to: 1, over: phase}}}}", path))
        elif abs(gate(self.end) - 1.0) > 1e-9:
            message = (
                f"the gate stands at {gate(self.end):g} where its phase ends, and it is taken away there: let it reach 1 in this phase"
            )
            drafts.problems.append(Problem(f"{message}, as in {{linear: {{from: 0, to: 1, over: phase}}}}", path))


def kept_blocks(phase: PhaseConfig, old: ModelState, new: ModelState, drafts: Drafts, rack: Draft) -> BlockMap:
    """The block map without an operator: every block keeps its place; a new one is a problem."""
    known = set(_blocks(old))
    if fresh := [block for block in _blocks(new) if block not in known]:
        names = ", ".join(c.id for c in drafts.registry.of_kind("growth")) or "none installed"
        stack, index = fresh[0]
        message = (
            f"block {index} of stack '{stack}' is new in phase '{phase.name}', and nothing says where it comes from: "
            f"declare `enter: {{growth: {{use: ...}}}}` in the phase (operators: {names})"
        )
        path = f"{rack.path}.{'stacks' if rack.blocks is None else rack.blocks[stack]}"
        drafts.problems.append(Problem(message, path, phase.locate(path)))
    return {block: BlockOrigin(source=block if block in known else None) for block in _blocks(new)}


def grown_blocks(old: ModelState, new: ModelState, operator: GrowthOperator, growth: Draft, rack: Draft, drafts: Drafts) -> BlockMap:
    """The operator's map of the new rack; empty if it cannot be used, with the reason among problems or faults."""
    spec = rack.spec
    request = GrowthRequest(
        old_stacks=old.stacks,
        new_stacks=new.stacks,
        residual_outputs=spec.residual_outputs if isinstance(spec, RackSpec) else (),
        old_options={role: getattr(old, role).plain_options for role in ("embedding", "rack", "head")},
        new_options={role: getattr(new, role).plain_options for role in ("embedding", "rack", "head")},
    )
    try:
        origins = operator.map_blocks(request)
    except ValueError as error:
        drafts.problems.append(Problem(f"{growth.id} cannot make this change: {error}", growth.path))
        return {}
    except Exception as error:
        if growth.registered is None:
            raise
        message = f"{growth.label} failed: {type(error).__name__}: {error}; what it cannot do it says as ValueError"
        drafts.faults.append(ProviderError(message))
        return {}
    blocks, known = _blocks(new), {None, *_blocks(old)}
    if not hasattr(origins, "keys") or set(origins) != set(blocks) or any(origin.source not in known for origin in origins.values()):
        message = f"{growth.label} mapped blocks {origins} where the new rack has {blocks}, or from blocks that do not exist"
        drafts.faults.append(ProviderError(message))
        return {}
    if needs_residual_outputs(origins) and names_residual_outputs(rack) is False:
        drafts.problems.append(Problem(f"{growth.id} cannot make this change: {no_residual_outputs(rack)}", growth.path))
    return {block: origins[block] for block in blocks}


def needs_residual_outputs(blocks: BlockMap) -> bool:
    """Whether the rack must name the parameters of a block that write into the residual stream."""
    return any(origin.zero_residual or origin.gated for origin in blocks.values())


def names_residual_outputs(rack: Draft) -> bool | None:
    """Whether the rack names its residual outputs; None if only the module can say."""
    if rack.registered is not None or rack.blocks is not None:
        return bool(rack.spec.residual_outputs) if isinstance(rack.spec, RackSpec) else None
    make = rack.given.make if isinstance(rack.given, Built) else type(rack.given)
    while isinstance(make, partial):
        make = make.func
    return False if isinstance(make, type) and not hasattr(make, "to_spec") else None


def no_residual_outputs(rack: Draft) -> str:
    """The sentence on a rack that does not name its residual outputs."""
    spec = "RackSpec(residual_outputs=...)"
    fix = f"let its `to_spec` return {spec}" if rack.blocks is None else f"write Built({rack.id}, spec={spec}, ...)"
    return f"it changes the residual outputs of new blocks, and {rack.label} does not name them: {fix}, or use an operator that copies"


def keeps_every_block(old: ModelState, blocks: BlockMap) -> bool:
    """Whether the old blocks all go on, each once and in their order, so that only new ones can change the function."""
    sources = [origin.source for origin in blocks.values() if origin.source is not None and not origin.gated and not origin.zero_residual]
    return sources == _blocks(old)


def _blocks(model: ModelState) -> list[tuple[str, int]]:
    return [(stack, index) for stack, count in model.stacks.items() for index in range(count)]
