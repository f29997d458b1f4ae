"""The two doors: `load` reads a file, `experiment` reads Python; both give the same `Experiment`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from stackwise.config.documents import extend, override, read_file
from stackwise.config.experiment import Experiment
from stackwise.config.merging import merge
from stackwise.config.objects import read_object
from stackwise.config.rules import run_name_of
from stackwise.config.timeline import read_experiment


def load(path: str | PathLike[str], overrides: Sequence[str] = ()) -> Experiment:
    """Read a config file.

    Args:
        path: a YAML file.
        overrides: settings on top of it, `"optimizer.lr=1e-3"`.

    Returns:
        The experiment; mistakes of meaning are in its `problems`, to be reported together with those of the plan.

    Raises:
        ConfigError: the file or a setting cannot be read at all.
    """
    place = Path(path)
    return read_experiment(override(read_file(place), overrides), run_name_of(place.stem))


def experiment(mapping: Mapping[str, Any] | None = None, /, **sections: Any) -> Experiment:
    """Read a config written in Python: a dict as YAML would give it, whose values may be `Built` or finished objects.

    Args:
        mapping: the config.
        sections: more sections, laid on it by the merge rule of all configs.

    Raises:
        ConfigError: keys that are not text, numbers that are not finite, phases of one name.
    """
    tree = merge(read_object(mapping or {}), read_object(sections))
    return read_experiment(extend(tree, Path()), "run")


def overridden(experiment: Experiment, overrides: Sequence[str]) -> Experiment:
    """An experiment with settings on top of it; the objects that it was given stay.

    Raises:
        ConfigError: a setting cannot be read.
    """
    return read_experiment(override(experiment.tree, overrides), experiment.run.name)
