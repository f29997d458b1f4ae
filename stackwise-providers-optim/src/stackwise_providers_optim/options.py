"""The options of every optimizer, and the specs they declare."""

from __future__ import annotations

from math import prod
from typing import Any, Literal

from attrs import frozen

from stackwise import OptimizerSpec, UserError, matches, option, scheduled

Shape = tuple[int, ...]

HIDDEN_SIDE = "rack."
"""What the canonical names of hidden layers begin with."""


def _one_moment(shape: Shape) -> int:
    return prod(shape)


def _two_moments_and_a_step(shape: Shape) -> int:
    return 2 * prod(shape) + 1


def _factored_moment_and_a_step(shape: Shape) -> int:
    if len(shape) < 2:
        return prod(shape) + 1
    *front, rows, columns = shape
    return prod(front) * (rows + columns) + 1


def _moment_iterate_and_average(shape: Shape) -> int:
    return 2 * prod(shape) + 4


@frozen
class EachEntry:
    """FLOPs of a step of a parameter of which every entry costs the same."""

    flops: int

    def __call__(self, name: str, shape: Shape) -> int:
        """Those of the whole parameter."""
        return self.flops * prod(shape)


ADAMW_FLOPS = EachEntry(14)
"""First moment 3, second 4, root, correction and ε 3, update 3, decay 1."""


@frozen
class _MatrixOrVector:
    """FLOPs of a step of Adafactor: the squares by row and by column, their product, root and quotient, two norms, update and decay."""

    def __call__(self, name: str, shape: Shape) -> int:
        return (14 if len(shape) < 2 else 16) * prod(shape)


@frozen
class _NewtonSchulzOrAdamW:
    """FLOPs of a step of Muon: of an m × n matrix, m ≤ n, three products for each Newton–Schulz step, 2m²n, 2m³ and 2m²n."""

    matrices: tuple[str, ...] | None
    steps: int
    nesterov: bool

    def __call__(self, name: str, shape: Shape) -> int:
        if not is_hidden_matrix(self.matrices, name, shape):
            return ADAMW_FLOPS(name, shape)
        m, n = sorted((shape[0], prod(shape[1:])))
        products = 4 * m * m * n + 2 * m**3
        sums = 3 * m * m + 2 * m * n
        around = 9 + (3 if self.nesterov else 0)  # an entry: momentum 3, look-ahead 3, norm and quotient 3, update and decay 3
        return self.steps * (products + sums) + around * m * n


@frozen(kw_only=True)
class DecayOptions:
    """Which parameters have weight decay; the same for every optimizer."""

    decay: Literal["matrices", "all"] = option(
        "matrices", doc="what decays: matrices (not the embedding, not norms and biases), or all", choices=("matrices", "all")
    )


@frozen(kw_only=True)
class AdamWOptions(DecayOptions):
    """Adam with decoupled weight decay (arXiv 1711.05101, algorithm 2)."""

    lr: float = scheduled(1e-3, doc="learning rate", minimum=0)
    weight_decay: float = scheduled(0.1, doc="share of a weight subtracted at each step, times the learning rate", minimum=0)
    beta1: float = scheduled(0.9, doc="decay of the first moment per step", minimum=0, below=1)
    beta2: float = scheduled(0.95, doc="decay of the second moment per step", minimum=0, below=1)
    eps: float = scheduled(1e-8, doc="added to the root of the second moment", minimum=0)

    def to_spec(self) -> OptimizerSpec:
        """Two moments and a step counter a parameter."""
        return OptimizerSpec(state_elements=_two_moments_and_a_step, step_flops=ADAMW_FLOPS, steps_parts=True)


@frozen(kw_only=True)
class SGDOptions(DecayOptions):
    """Stochastic gradient descent with momentum (Sutskever et al. 2013, section 2)."""

    lr: float = scheduled(0.01, doc="learning rate", minimum=0)
    momentum: float = scheduled(0.9, doc="share of the last update that is kept", minimum=0, below=1)
    nesterov: bool = option(False, doc="look ahead along the momentum")
    weight_decay: float = scheduled(0.0, doc="share of a weight subtracted at each step, times the learning rate", minimum=0)
    coupled: bool = option(
        False,
        doc="true: weight decay is added to the gradient and passes through the momentum, as in torch.optim.SGD; "
        "false: it is taken from the weight itself (arXiv 1711.05101, algorithm 1)",
    )

    def to_spec(self) -> OptimizerSpec:
        """One momentum a parameter, kept even while it is 0."""
        flops = 5 + (2 if self.nesterov else 0) + (1 if self.coupled else 0)  # momentum 2, update 2, decay 1
        return OptimizerSpec(state_elements=_one_moment, step_flops=EachEntry(flops), steps_parts=True)


@frozen
class _HiddenOrRest:
    """State entries of Muon: one momentum for a hidden matrix, Adam's for the rest."""

    matrices: tuple[str, ...] | None

    def __call__(self, name: str, shape: Shape) -> int:
        hidden = is_hidden_matrix(self.matrices, name, shape)
        return prod(shape) if hidden else _two_moments_and_a_step(shape)


def _as_in_the_rack(shape: Shape) -> int:
    return _HiddenOrRest(None)(HIDDEN_SIDE, shape)


def is_hidden_matrix(matrices: tuple[str, ...] | None, name: str, shape: Shape) -> bool:
    """Whether Muon steps a parameter: named by a selector, or, without selectors, of two axes inside the rack."""
    return name.startswith(HIDDEN_SIDE) and len(shape) == 2 if matrices is None else matches(matrices, name)


@frozen(kw_only=True)
class MuonOptions(DecayOptions):
    """Muon for hidden matrices (Jordan et al. 2024, kellerjordan.github.io/posts/muon), AdamW for everything else."""

    lr: float = scheduled(0.02, doc="learning rate of the hidden matrices", minimum=0)
    weight_decay: float = scheduled(0.1, doc="share of a hidden matrix subtracted at each step, times `lr`", minimum=0)
    momentum: float = scheduled(0.95, doc="share of the running mean of gradients that is kept per step", minimum=0, below=1)
    nesterov: bool = option(True, doc="look ahead along the momentum")
    scale: Literal["original", "match-rms-adamw"] = option(
        "original",
        doc="factor on the update of an m × n matrix: original √max(1, m/n); "
        "match-rms-adamw 0.2·√max(m, n) (arXiv 2502.16982, section 2.2), which lets `lr` be one that suits AdamW",
        choices=("original", "match-rms-adamw"),
    )
    ns_steps: int = option(5, doc="Newton–Schulz steps", minimum=1, maximum=20)
    precision: Literal["auto", "bfloat16", "float32"] = option(
        "auto",
        doc="numbers of the Newton–Schulz steps; auto is float32 on a CPU, which multiplies bfloat16 slowly, and bfloat16 elsewhere",
        choices=("auto", "bfloat16", "float32"),
    )
    matrices: tuple[str, ...] | None = option(
        None,
        doc="selectors of the hidden matrices; left out, the parameters of two axes in the rack; of more, axes after the first are one",
    )
    adamw_lr: float = scheduled(1e-3, doc="learning rate of everything else", minimum=0)
    adamw_weight_decay: float = scheduled(0.1, doc="weight decay of everything else, times `adamw_lr`", minimum=0)
    adamw_beta1: float = scheduled(0.9, doc="decay of the first moment of everything else per step", minimum=0, below=1)
    adamw_beta2: float = scheduled(0.95, doc="decay of the second moment of everything else per step", minimum=0, below=1)
    adamw_eps: float = scheduled(1e-8, doc="added to the root of the second moment of everything else", minimum=0)

    def __attrs_post_init__(self) -> None:
        if self.matrices is not None and not self.matrices:
            raise UserError("matrices: an empty list names no hidden matrix: leave it out, or use optim.adamw")

    def to_spec(self) -> OptimizerSpec:
        """One momentum for a hidden matrix; two moments and a step counter for every other parameter."""
        return OptimizerSpec(
            state_elements=_as_in_the_rack,
            named_state_elements=_HiddenOrRest(self.matrices),
            step_flops=_NewtonSchulzOrAdamW(self.matrices, self.ns_steps, self.nesterov),
            steps_parts=True,
        )


@frozen(kw_only=True)
class AdafactorOptions(DecayOptions):
    """Adafactor: the second moment of a matrix as the product of a row and a column (arXiv 1804.04235, algorithms 4 and 5)."""

    lr: float = scheduled(1e-2, doc="largest relative step ρ; a step is at most 1/√step of the parameter's root mean square", minimum=0)
    weight_decay: float = scheduled(0.0, doc="share of a weight subtracted at each step, times the learning rate", minimum=0)
    beta2_decay: float = option(-0.8, doc="exponent c of the second moment's decay 1 − step^c", maximum=0)
    eps1: float | None = option(None, doc="least second moment and root of it; left out, the dtype's machine epsilon", minimum=0)
    eps2: float = option(1e-3, doc="least root mean square of a parameter that its step is relative to", minimum=0)
    clip_threshold: float = option(1.0, doc="largest root mean square of an update, before the step size", minimum=1)

    def to_spec(self) -> OptimizerSpec:
        """A row and a column for each matrix, an entry for each number of a vector, and a step counter."""
        return OptimizerSpec(state_elements=_factored_moment_and_a_step, step_flops=_MatrixOrVector())


@frozen(kw_only=True)
class LionOptions(DecayOptions):
    """Lion: the sign of an interpolated momentum (arXiv 2302.06675, algorithm 2)."""

    lr: float = scheduled(1e-4, doc="learning rate; a third to a tenth of AdamW's", minimum=0)
    weight_decay: float = scheduled(1.0, doc="share of a weight subtracted at each step, times the learning rate", minimum=0)
    beta1: float = scheduled(0.9, doc="share of the momentum in the update", minimum=0, below=1)
    beta2: float = scheduled(0.99, doc="decay of the momentum per step", minimum=0, below=1)

    def to_spec(self) -> OptimizerSpec:
        """One momentum a parameter; sign of their mean 4, update 2, decay 1, momentum 3 FLOPs an entry."""
        return OptimizerSpec(state_elements=_one_moment, step_flops=EachEntry(10), steps_parts=True)


@frozen(kw_only=True)
class ScheduleFreeOptions(DecayOptions):
    """Schedule-free AdamW (arXiv 2405.15682, algorithm 1)."""

    lr: float = scheduled(2.5e-3, doc="learning rate; constant after its warm-up, for averaging takes the place of a decay", minimum=0)
    weight_decay: float = scheduled(0.0, doc="weight decay at the point of the gradient, times the learning rate", minimum=0)
    beta1: float = scheduled(
        0.9, doc="share of the average x in the point y where gradients are taken; the rest is the iterate z", minimum=0.1, below=1
    )
    beta2: float = scheduled(0.999, doc="decay of the second moment per step", minimum=0, below=1)
    eps: float = scheduled(1e-8, doc="added to the root of the second moment", minimum=0)
    step_power: float = option(0.0, doc="exponent of the step number in the weights of the average", minimum=0)
    lr_power: float = option(2.0, doc="exponent of the largest learning rate so far in the weights of the average", minimum=0)

    def to_spec(self) -> OptimizerSpec:
        """The second moment, the iterate z and four numbers a parameter."""
        return OptimizerSpec(
            state_elements=_moment_iterate_and_average, step_flops=EachEntry(17), steps_parts=True
        )  # second moment 4, quotient 4, decay 2, y 5, z 2


@frozen(kw_only=True)
class NamedOptions(DecayOptions):
    """An optimizer of a library by its name there. It declares no spec: its state is known once it has run."""

    name: str = option(doc="name in the library's own list")
    lr: float = scheduled(doc="learning rate", minimum=0)
    weight_decay: float = scheduled(0.0, doc="weight decay as the optimizer defines it", minimum=0)
    options: dict[str, Any] = option(factory=dict, doc="further arguments of the optimizer, by their names there")
