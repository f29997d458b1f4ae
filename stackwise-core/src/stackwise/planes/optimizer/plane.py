"""The optimizer plane: which parameters learn, with which values at t, and what happens to their moments at a boundary."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from types import MappingProxyType
from typing import Any

import attrs
import torch
from torch import nn

from stackwise.contracts.answers import calling, expect, expect_state, is_number, mark
from stackwise.contracts.protocols import ParameterGroup, Reaction
from stackwise.curriculum.parts import Part
from stackwise.curriculum.states import OptimizerState
from stackwise.curriculum.transitions import Enter
from stackwise.errors import ProviderError, UserError
from stackwise.planes.model.transfer import ModelReceipt
from stackwise.planes.optimizer.average import WeightAverage
from stackwise.planes.optimizer.groups import Values, group_parameters, selection
from stackwise.planes.optimizer.loss_scale import LossScale
from stackwise.planes.optimizer.masters import Masters
from stackwise.planes.optimizer.moments import Crossing, Kept, MomentsReceipt, park
from stackwise.planes.optimizer.named_optimizer import NamedOptimizer, laid_entries
from stackwise.planes.optimizer.weight_copies import SIXTEEN_BITS, learning_dtype

BuildOptimizer = Callable[[Part, float, Sequence[ParameterGroup]], torch.optim.Optimizer]


class OptimizerPlane:
    """Owns the optimizer; crosses declared states with every moment accounted for by name.

    Args:
        build: makes the optimizer of a declared part at run time t over parameter groups; None when it was given finished.
        build_reaction: makes the declared answer to the training signal.
    """

    def __init__(self, build: BuildOptimizer | None = None, build_reaction: Callable[[Part], Reaction] | None = None) -> None:
        self._build, self._build_reaction = build, build_reaction
        self._state: OptimizerState | None = None
        self._named: NamedOptimizer
        self._model: dict[str, nn.Parameter] = {}
        """Every parameter of the model in place."""
        self._masters = Masters({}, {}, ModelReceipt())
        self._parked: dict[str, Kept] = {}
        """What was kept of frozen parameters, for the phase that thaws them."""
        self._settled: set[nn.Parameter] = set()
        """Parameters that hold other weights since this boundary than those that their state belongs to."""
        self._copied_at_rest: set[nn.Parameter] = set()
        """Parameters that train on, and of which frozen copies hold the weights to keep since this boundary."""
        self._warming: tuple[str, ...] = ()
        """Fresh parameters whose learning rate warms up again."""
        self._values: Values | None = None
        self._component = ""
        """Id of the declared optimizer."""
        self.clip: float | None = None
        """Largest gradient norm; None: no clipping."""
        self.average: WeightAverage | None = None
        self.reaction: Reaction | None = None
        self.loss_scale: LossScale | None = None
        """Of a model with float16 in it; None for every other."""
        self.parameters: list[nn.Parameter] = []
        """The trainable parameters of the model, each once; their gradients are read here."""

    @classmethod
    def of(
        cls,
        optimizer: torch.optim.Optimizer,
        trainable: Mapping[str, nn.Parameter],
        frozen: Mapping[str, nn.Parameter] = MappingProxyType({}),
    ) -> OptimizerPlane:
        """A plane around a finished optimizer over the model's trainable parameters; gradients pass through the frozen ones.

        Raises:
            UserError: the optimizer's parameters are not exactly the model's trainable ones; parameters in sixteen bits.
        """
        plane = cls()
        plane._hold(NamedOptimizer(optimizer, trainable, {}, UserError), trainable)
        if narrow := [name for name, parameter in trainable.items() if parameter.dtype in SIXTEEN_BITS]:
            raise UserError(
                f"{narrow[0]} is held in {trainable[narrow[0]].dtype}, and a finished optimizer steps it without a float32 master, so that "
                "small updates are lost: give Built(callable, options) in place of the optimizer, or hold the model in float32"
            )
        plane._scale({**frozen, **trainable})
        return plane

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The torch optimizer in place."""
        return self._named.torch

    @property
    def learning(self) -> Mapping[str, nn.Parameter]:
        """Name → what the optimizer steps: each trainable parameter, or its float32 master."""
        return self._named.parameters

    @property
    def default_group(self) -> Mapping[str, Any]:
        """The torch group of the parameters that no declared group takes; the first one where groups take them all."""
        return self._named.default_group

    # -- a step ---------------------------------------------------------------------------------------------------

    @property
    def moves(self) -> bool:
        """Whether any value of a group follows time."""
        return self._values is not None and self._values.moves

    def apply_values(self, t: float) -> None:
        """Put the values of all groups at t in force."""
        if self._values is not None:
            self._values.apply(t, 1.0 if self.reaction is None else self.reaction.factor)

    def step(self, t: float) -> None:
        """One update of the weights, and of their average."""
        self._masters.take_gradients()
        try:
            self._named.step()
        except BaseException as error:
            mark(error, self._component, "step")
            raise
        self._masters.write()
        if self.average is not None and self._state is not None and self._state.ema is not None:
            self.average.update(self._state.ema(t))

    def watch(self, step: int, metrics: Mapping[str, float]) -> tuple[float, str] | None:
        """Show the declared reaction some numbers; the factor before and why it changed, when it did."""
        if self.reaction is None:
            return None
        before = self.reaction.factor
        with calling(self._reaction_id, "watch"):
            why = self.reaction.watch(step, metrics)
            expect(why is None or isinstance(why, str), why, "a sentence or None")
            expect(is_number(self.reaction.factor), self.reaction.factor, "a factor that is a number")
        return None if why is None else (before, why)

    # -- the weights to judge and to keep -------------------------------------------------------------------------

    @contextmanager
    def evaluating(self, weights: str = "live") -> Iterator[None]:
        """The model with the weights to judge or keep: an optimizer that trains at other points shows its own, `ema` the average.

        Raises:
            UserError: an average asked for where none is kept.
        """
        if weights == "ema" and self.average is None:
            raise UserError("an average of the weights is asked for in a phase that keeps none: declare optimizer.ema")
        average = self.average.in_place() if weights == "ema" and self.average is not None else nullcontext()
        with self._judged_weights(), average:
            yield

    @contextmanager
    def _judged_weights(self) -> Iterator[None]:
        if not self._named.trains_elsewhere:
            yield
            return
        self._named.judge()
        self._masters.write()
        try:
            yield
        finally:
            self._named.train()
            self._masters.write()

    def leave(self, state: OptimizerState) -> None:
        """Before anything crosses: where another optimizer takes over, every parameter leaves the one in place."""
        if self._state is not None and self._state.part.id != state.part.id:
            self.settle(self.parameters)

    def settle(self, leaving: Iterable[nn.Parameter], staying: Iterable[nn.Parameter] = ()) -> dict[nn.Parameter, torch.Tensor]:
        """Give parameters the weights to keep, where the optimizer trained at others; the state that belongs to those ends.

        Args:
            leaving: parameters that the optimizer will not train any more; they are changed.
            staying: parameters that it goes on to train, and of which frozen copies are made.

        Returns:
            The weights to keep of those that stay; empty where they are the weights in place.
        """
        if not self.parameters or not self._named.trains_elsewhere:
            return {}
        learning, entries = self._named.parameters, self._named.entries()
        ids = [{id(parameter) for parameter in each if parameter not in self._settled} for each in (leaving, staying)]
        moved, copied = ([name for name in entries if id(self._model[name]) in group] for group in ids)
        with self.evaluating() if moved or copied else nullcontext():
            weights = {name: learning[name].detach().clone() for name in (*moved, *copied)}
        for name in moved:
            learning[name].detach().copy_(weights[name])
        self._masters.write()
        self._settled.update(self._model[name] for name in moved)
        self._copied_at_rest.update(self._model[name] for name in copied)
        return {self._model[name]: weights[name] for name in copied}

    # -- crossing a boundary --------------------------------------------------------------------------------------

    def enter(
        self,
        state: OptimizerState,
        parameters: Mapping[str, nn.Parameter],
        t: float,
        *,
        receipt: ModelReceipt | None = None,
        enter: Enter | None = None,
        fresh: Collection[str] = (),
        buffers: Mapping[str, torch.Tensor] = MappingProxyType({}),
    ) -> MomentsReceipt:
        """Cross into a declared state over the parameters that are trainable now; `apply_values` puts its values in force.

        Args:
            state: the declaration to reach.
            parameters: canonical name → parameter of the model in place, each once, frozen ones included.
            t: run time at the boundary.
            receipt: what the model plane did to the parameters; None at the start.
            enter: the phase's policy for moments.
            fresh: parameters that warm up again, where no receipt says so because saved state follows.
            buffers: those of the model; an average of the weights takes in the statistics of norm layers.

        Raises:
            UserError: a group that selects nothing.
            ProviderError: the optimizer's parameters are not exactly the trainable ones.
        """
        policy, crossed = enter or Enter(), receipt or ModelReceipt()
        again = () if policy.rewarm is None else fresh if receipt is None else receipt.fresh
        warming = tuple(name for name in again if name in parameters and parameters[name].requires_grad)
        if self._goes_on(state, parameters, warming, crossed):
            moments = MomentsReceipt(kept=len(self.state_by_name()))
        else:
            moments = self._rebuild(state, parameters, t, crossed, policy, warming)
        before, self._state, self._warming, self.clip = self._state, state, warming, state.clip
        self._component = state.part.id
        self._scale(parameters)
        self._react(before, state)
        self._keep_average(state, crossed, buffers)
        factor = state.lr_factor(sum(parameter.numel() for parameter in parameters.values()))
        self._values = Values(self.optimizer, state, factor=factor, rewarm=policy.rewarm)
        return moments

    def _goes_on(
        self, state: OptimizerState, parameters: Mapping[str, nn.Parameter], warming: tuple[str, ...], receipt: ModelReceipt
    ) -> bool:
        """Whether the very optimizer stays: the same component, groups and parameters, no frozen one moved whose state is parked."""
        last = self._state
        if last is None or last.part.structure != state.part.structure or selection(last) != selection(state):
            return False
        trainable = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
        same = trainable.keys() == self._named.parameters.keys() and all(self._model[name] is p for name, p in trainable.items())
        return same and warming == self._warming and not receipt.moved

    def _rebuild(
        self,
        state: OptimizerState,
        parameters: Mapping[str, nn.Parameter],
        t: float,
        receipt: ModelReceipt,
        policy: Enter,
        warming: tuple[str, ...],
    ) -> MomentsReceipt:
        """Build the optimizer over what learns now, and hand it the moments that go on."""
        if self._build is None:
            raise UserError(
                "the optimizer was given as a finished object, so no phase can change what it trains: give a Built(callable, options)"
            )
        last, old = self._state, self._kept()
        learned = {} if last is None else {**self._masters.by_name(), **self._named.parameters}
        masters = Masters(parameters, learned, receipt)
        learning = masters.learning(parameters)
        trainable = {name: learning[name] for name, parameter in parameters.items() if parameter.requires_grad}
        groups = group_parameters(state, trainable, t, warming=warming, frozen=parameters.keys() - trainable.keys())
        followed = {group.name: frozenset(group.curves) for group in state.groups}
        fault = ProviderError if state.part.given is None else UserError  # a user's own callable is not a provider
        new = NamedOptimizer(self._build(state.part, t, groups), trainable, followed, fault, state.part.id)
        same = last is not None and last.part.id == state.part.id and type(new.torch) is type(self.optimizer)
        if last is not None and not same:
            self.settle(self.parameters)  # what `leave` could not know: a component of the same id may make another optimizer
            masters.go_on_from(learned, receipt)
        carried = self._crossing(receipt, parameters, same, policy).carry(old, learning, new.powers())
        new.go_on(carried.entries, carried.counted if same else {})
        self._parked = park(carried, trainable)
        self._settled, self._copied_at_rest, self._masters = set(), set(), masters
        self._hold(new, parameters)
        return carried.receipt

    def _crossing(self, receipt: ModelReceipt, parameters: Mapping[str, nn.Parameter], same: bool, policy: Enter) -> Crossing:
        """How moments cross: those of settled weights end, and those of a master stay float32 whatever its parameter is held in."""
        sources = {name: origin.sources for name, origin in receipt.copied.items() if not parameters[name].requires_grad}
        ended = {name for name in receipt.adopted if parameters[name] in self._settled}
        at_rest = self._settled | self._copied_at_rest
        ended |= {name for name, each in sources.items() if any(self._model.get(source) in at_rest for source in each)}
        recast = {name: was for name, was in receipt.recast.items() if learning_dtype(was) != learning_dtype(parameters[name].dtype)}
        return Crossing(receipt=attrs.evolve(receipt, recast=recast), same=same, moments=policy.moments, ended=ended)

    def _hold(self, named: NamedOptimizer, parameters: Mapping[str, nn.Parameter]) -> None:
        self._named, self._model = named, dict(parameters)
        self.parameters = [parameter for parameter in parameters.values() if parameter.requires_grad]

    def _scale(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Frozen float16 counts as well, because gradients pass through it."""
        if not any(parameter.dtype == torch.float16 for parameter in parameters.values()):
            self.loss_scale = None
        elif self.loss_scale is None:
            self.loss_scale = LossScale()

    def _react(self, before: OptimizerState | None, state: OptimizerState) -> None:
        """An unchanged reaction goes on with what it has seen; another one begins."""
        part, last = state.reaction, before.reaction if before is not None else None
        if part is None:
            self.reaction = None
        elif last is None or last.structure != part.structure:
            assert self._build_reaction is not None  # a declared reaction comes from a plan, which brings its builder
            self.reaction = self._build_reaction(part)

    def _keep_average(self, state: OptimizerState, receipt: ModelReceipt, buffers: Mapping[str, torch.Tensor]) -> None:
        if state.ema is None:
            self.average = None
            return
        if self.average is None:
            self.average, receipt = WeightAverage(), ModelReceipt()
        self.average.enter(self._model, receipt, buffers)

    # -- state ----------------------------------------------------------------------------------------------------

    def _kept(self) -> dict[str, Kept]:
        """What is kept of every parameter, frozen ones included."""
        return {**self._parked, **(self._named.kept() if self.parameters else {})}

    def state_by_name(self) -> dict[str, dict[str, Any]]:
        """Optimizer state by canonical parameter name, that of frozen parameters included; live, not copies."""
        return {name: kept.entries for name, kept in self._kept().items() if kept.entries}

    def load_state_by_name(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Restore what `state_by_name` returned.

        Raises:
            UserError: state of another shape than the parameter of that name.
        """
        self._named.load_entries(state)
        self._parked |= {
            name: Kept(entries=laid_entries(entries, self._model[name]))
            for name, entries in state.items()
            if name not in self._named.parameters
        }

    def state_dict(self) -> dict[str, Any]:
        """Optimizer state by canonical parameter name, and what the optimizer itself changed in its groups; live, checked, not copies."""
        self._named.check_savable()
        return {
            "of": type(self._named.torch).__name__,
            "parameters": self.state_by_name(),
            "groups": self._named.counts(),
            "parked": {name: {"moments": kept.powers, "changed": dict(kept.counts)} for name, kept in self._parked.items()},
            "masters": {name: master.detach() for name, master in self._masters.by_name().items()},
            "loss_scale": self.loss_scale.state_dict() if self.loss_scale is not None else None,
            "fresh": list(self._warming),
            "average": self.average.state_by_name() if self.average is not None else None,
            "reaction": self._reaction_state(),
        }

    @property
    def stops(self) -> str | None:
        """Why the declared reaction ends the run; None while it goes on."""
        if (why := getattr(self.reaction, "stops", None)) is not None:
            with calling(self._reaction_id, "stops"):
                expect(isinstance(why, str) and bool(why.strip()), why, "a sentence or None")
        return why

    @property
    def _reaction_id(self) -> str:
        declared = None if self._state is None else self._state.reaction
        return "" if declared is None else declared.id

    def _reaction_state(self) -> dict[str, Any] | None:
        with calling(self._reaction_id, "state_dict"):
            return None if self.reaction is None else expect_state(self.reaction.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned into an optimizer that was entered into the same declared state.

        Raises:
            UserError: state of another optimizer, of another shape than the parameter of that name, or another number of groups.
        """
        if state.get("of", own := type(self._named.torch).__name__) != own:
            raise UserError(f"the saved state is of the optimizer {state['of']}, and {own} is declared: change it in a phase to come")
        if (state["average"] is None) != (self.average is None) or (state["reaction"] is None) != (self.reaction is None):
            raise UserError("an average or a reaction was saved and is not declared, or is declared and was not saved")
        self._named.load(state["parameters"], state["groups"])
        frozen = {name: entries for name, entries in state["parameters"].items() if name not in self._named.parameters}
        said = {name: Kept(powers=saved["moments"], counts=saved["changed"]) for name, saved in state.get("parked", {}).items()}
        self._parked = {
            name: attrs.evolve(said.get(name, Kept()), entries=laid_entries(entries, self._model[name])) for name, entries in frozen.items()
        }
        self._masters.load(state.get("masters", {}), self._model)
        if self.loss_scale is not None:
            self.loss_scale.load_state_dict(state["loss_scale"])
        if self.average is not None:
            self.average.load_state_by_name(state["average"])
        if self.reaction is not None:
            with calling(self._reaction_id, "load_state_dict"):
                self.reaction.load_state_dict(state["reaction"])
