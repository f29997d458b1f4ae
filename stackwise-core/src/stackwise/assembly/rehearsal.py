"""Check what a run needs without a step: its device, the weights it starts from, and a row of every source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from stackwise.assembly.notes import log_notes
from stackwise.assembly.start import read_start
from stackwise.assembly.vocabularies import check_vocabularies
from stackwise.assembly.workshop import Workshop, read_first_rows
from stackwise.config import Experiment
from stackwise.errors import ConfigError, DataError, Problem, UserError
from stackwise.host.registry import blaming
from stackwise.machine.evaluation import Evaluation
from stackwise.machine.placement import Placement
from stackwise.plan import Plan


def rehearse(plan: Plan) -> None:
    """Check everything that the run needs before its first step; no module is built and nothing is written.

    Raises:
        ConfigError: every device, file and source that is missing or cannot be trained on, at once.
        ProviderError: a component that is needed cannot be built.
    """
    with blaming(plan.providers):
        problems = list(_problems(plan))
    if problems:
        raise ConfigError(problems)


def _problems(plan: Plan) -> Iterator[Problem]:
    experiment = plan.experiment
    run, start, placement = experiment.run, experiment.phases[0].model.start, Placement("cpu", experiment.run.precision)
    yield from _faults(experiment, "run.device", lambda: Placement(run.device, run.precision))
    if start is not None:
        yield from _faults(experiment, "model.start.from", lambda: read_start(plan))

    plans: list[Plan] = []
    yield from _faults(experiment, "data.sources", lambda: plans.append(plan.with_tokenizers()))
    if plans:
        yield from _data_problems(plans[0], placement)


def _data_problems(plan: Plan, placement: Placement) -> Iterator[Problem]:
    """The problems of the data; the plan has its tokenizers."""
    experiment, shop = plan.experiment, Workshop(plan)
    data, evaluations = shop.data("train", placement), list[Evaluation]()

    def train() -> None:
        try:
            read_first_rows(plan, data)
            log_notes(plan, data)
        finally:
            data.end()

    problems = list(_faults(experiment, "data.sources", train))
    for declared in plan.evaluations:
        look = partial(lambda each: evaluations.append(shop.evaluation(each, placement)), declared)
        problems += _faults(experiment, f"evaluate.{declared.name}", look)
    yield from problems or _faults(experiment, "run.vocabularies", lambda: check_vocabularies(plan, data, evaluations))


def _faults(experiment: Experiment, path: str, look: Callable[[], object]) -> Iterator[Problem]:
    """The user errors that `look` raises, as problems at their own place, or at `path`."""
    try:
        look()
    except ConfigError as error:
        yield from error.problems
    except DataError as error:
        yield Problem(str(error))
    except UserError as error:
        yield experiment.problem(path, str(error).removeprefix(f"{path}: "))
