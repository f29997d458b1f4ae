"""What a provider publishes, and what its factories are given.

A provider publishes `Component` records through the hooks of `hookspecs.py`; each names an options class and a factory as
`"module:attribute"`, loaded only when needed. Factories are called as `factory(options, context)`; an optimizer's as
`factory(options, context, groups)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Literal

from attrs import Factory, frozen

from stackwise.contracts.specs import (
    AdapterSpec,
    BatchSpec,
    EmbeddingSpec,
    HeadSpec,
    OptimizerSpec,
    RackSpec,
    Spec,
    TaskSpec,
    TransformSpec,
)
from stackwise.errors import UserError

Kind = Literal[
    "embedding",
    "rack",
    "head",
    "task",
    "optimizer",
    "loader",
    "transform",
    "adapter",
    "weight-adapter",
    "growth",
    "reaction",
    "schedule",
    "observer",
    "format",
]


SPEC_OF: Mapping[Kind, type[Spec]] = {
    "embedding": EmbeddingSpec,
    "rack": RackSpec,
    "head": HeadSpec,
    "adapter": AdapterSpec,
    "task": TaskSpec,
    "optimizer": OptimizerSpec,
    "loader": BatchSpec,
    "transform": TransformSpec,
}
"""Kind → class of the spec that `to_spec()` of its options returns; the other kinds have no spec."""


@frozen(kw_only=True)
class Component:
    """One thing a provider offers. Its id is `<provider>.<name>`, unique within its kind; the hook it comes from says the kind."""

    name: str
    """Short name in kebab-case (`causal-lm`)."""
    options: str
    """`"module:Class"` of an attrs frozen class (see `stackwise.contracts.options`) with `to_spec()`; importable without torch."""
    factory: str
    """`"module:attribute"` called to build the artifact; its module may import torch."""
    summary: str = ""
    """One line for listings."""
    example: Mapping[str, Any] = Factory(dict)
    """A tiny complete set of options, as in a config."""


@frozen(kw_only=True)
class Starter:
    """A file to begin with, as `stackwise init NAME` writes it: a config that validates and trains as it stands, with comments."""

    name: str
    """Short name in kebab-case (`chat`)."""
    text: str
    """`"module:attribute"` of the text of the file; loaded when somebody asks for it."""
    summary: str = ""
    """One line for listings."""
    files: Mapping[str, str] = Factory(dict)
    """Sample data written beside it: file name → `"module:attribute"` of text or bytes. The text of the starter names each file right after
    a double quote, where the path is inserted."""
    folder: bool = False
    """Whether it begins from the folder of a trained model (`--from`). The text then says `"FOLDER` where the path belongs, and has no
    section `model`, which is written from the folder."""
    language: Literal["yaml", "python"] = "yaml"


@frozen(kw_only=True)
class BuildContext:
    """What a factory may know besides its options."""

    seed: int
    """Seed of this component's own stream, derived from the run's seed and the component's place."""
    split: str = "train"
    """`train`, or the name of an evaluation, for which a loader must deliver documents that training does not see."""
    whole: bool = False
    """Whether a loader belongs to an evaluation alone (its own `sources`): it then delivers all of its data instead of a held-out part."""
    steps: int = 1
    """Steps of the whole run."""
    max_rows: int | None = None
    """Largest number of rows in one request anywhere on the timeline: a size for buffers. What a loader delivers must not depend on it."""
    max_length: int | None = None
    """Longest row anywhere on the timeline, including the task's lookahead."""
    specs: Mapping[str, Any] = Factory(dict)
    """Specs at the junctions with their solved sizes: `batch`, `embedding`, `rack`, `head`, `task`."""


@frozen
class Deferred:
    """A callable of the core by name, imported when it is called, so that code without torch can declare what needs torch to be built."""

    target: str
    """`"module:attribute"`."""

    @property
    def __name__(self) -> str:
        return self.target.partition(":")[2]

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        module, _, attribute = self.target.partition(":")
        return getattr(import_module(module), attribute)(*arguments, **options)


@frozen(init=False)
class Built:
    """A user's own callable and its options, so that phases can rebuild it: `Built(MyRack, width=64, stacks=[{"base": 2}])`.

    `spec` states the boundary where the default of its kind does not hold (a rack: hidden in, hidden out, blocks under
    `stacks.<stack>.<i>`).

    Raises:
        UserError: an option without a name, such as the parameters of an optimizer.
    """

    make: Callable[..., Any]
    options: Mapping[str, Any]
    spec: Any

    def __init__(self, make: Callable[..., Any], spec: Any = None, **options: Any) -> None:
        if spec is not None and not isinstance(spec, tuple(SPEC_OF.values())):
            name, kind = getattr(make, "__name__", type(make).__name__), type(spec).__name__
            raise UserError(
                f"Built({name}, <{kind}>): options are given by name, Built({name}, <option>=…), as phases change them by name; what may "
                "stand beside the callable is a spec, and an optimizer is given its parameters by the run"
            )
        object.__setattr__(self, "make", make)
        object.__setattr__(self, "options", options)
        object.__setattr__(self, "spec", spec)
