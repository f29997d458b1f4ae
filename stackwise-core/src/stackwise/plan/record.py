"""The compiled experiment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from attrs import Factory, evolve, field, frozen

from stackwise.config import Experiment
from stackwise.contracts.tokenizers import Tokenizers
from stackwise.curriculum.bridges import Bridge
from stackwise.curriculum.parts import Part
from stackwise.curriculum.schedule import PhaseSchedule
from stackwise.host.provider import Provider
from stackwise.host.registry import Registry, blaming
from stackwise.plan.evaluations import EvaluationPlan
from stackwise.plan.junctions.join import Joined
from stackwise.plan.vocabularies import TextSource, make_tokenizers, text_sources


@frozen(kw_only=True)
class Plan:
    """The compiled experiment: what run, pricing and the log share."""

    experiment: Experiment
    registry: Registry
    schedule: PhaseSchedule
    joined: tuple[Joined, ...]
    """One a phase: filled drafts, specs and bridges."""
    evaluations: tuple[EvaluationPlan, ...] = ()
    observers: tuple[Part, ...] = ()
    start_format: Part | None = None
    """Format of the folder that the run begins from, where the config names one."""
    providers: tuple[Provider, ...] = ()
    """The providers that this plan uses."""
    read_by_schedules: Mapping[str, Mapping[str, Any]] = Factory(dict)
    """Config key of a schedule → the fingerprint of the data that it reads, where it reads any."""
    max_rows: int | None = None
    max_length: int | None = None
    """Longest row that a loader has to deliver, lookahead included."""
    lookahead: int = 0
    """Entries a row needs beyond seq_len, the most any task asks."""

    tokenizers: Tokenizers = field(factory=Tokenizers)
    """Those of a run that resumes; of a new run none, until `with_tokenizers` makes them."""

    def with_tokenizers(self) -> Plan:
        """The plan with the tokenizers of all its sources; vocabularies are learnt where sources ask for that.

        Raises:
            UserError: a file that cannot be read, or data that no vocabulary can be learnt from.
        """
        with blaming(self.providers):
            return evolve(self, tokenizers=make_tokenizers(self.text_sources(), self.tokenizers))

    def text_sources(self) -> list[TextSource]:
        """The sources of phases and evaluations that declare a tokenizer."""
        phases = [(self.experiment.phases[phase.index], phase.state.data.sources) for phase in self.schedule if phase.state is not None]
        own = {config.name for config in self.experiment.evaluate if config.sources is not None}
        return text_sources(self.experiment, phases, [(each.name, each.state.sources) for each in self.evaluations if each.name in own])

    @property
    def bridges(self) -> tuple[Bridge, ...]:
        """Every bridge of every phase, each once."""
        return tuple(dict.fromkeys(bridge for joined in self.joined for bridge in joined.bridges))


def providers_of(registry: Registry, joined: Iterable[Joined], others: Iterable[Part], owners: Iterable[str]) -> tuple[Provider, ...]:
    """The providers of everything that stands in a plan.

    Args:
        registry: which has them.
        joined: the phases.
        others: observers, and what evaluations read.
        owners: names of the providers of its schedules.
    """
    names: dict[str, None] = {}
    for each in joined:
        own = each.drafts
        drafts = [*own.by_role().values(), own.optimizer, *own.transforms, *own.weight_adapters.values(), own.reaction, own.growth]
        names |= {draft.registered.provider: None for draft in drafts if draft is not None and draft.registered is not None}
    names |= {part.id.partition(".")[0]: None for part in others if part.given is None}
    names |= dict.fromkeys(owners)
    return tuple(provider for name in names if (provider := registry.provider(name)) is not None)
