"""-log softmax(hidden · weightᵀ + bias) of targets, a few rows at a time, so that the logits are never there as a whole.

Shapes: N rows, D width, V vocab, C the rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

_ENTRIES = {"cpu": 2**22}
_ENTRIES_ELSEWHERE = 2**27
"""Logits of a chunk: on a CPU 16 MB in float32, which its caches hold best; on a device enough to keep it busy."""


class _Form(NamedTuple):
    """What the logits are beside a product."""

    cap: float | None
    without: int | None
    best: bool
    dtype: torch.dtype
    """Of the product, as autocast would have it."""


def linear_nats(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor | None,
    targets_N: torch.Tensor,
    *,
    cap: float | None = None,
    without: int | None = None,
    best: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """-log softmax(z) of every target, and the likeliest id of every row; z = hidden · weightᵀ + bias.

    The backward pass makes the logits of a chunk again: one product more than with all logits kept, and less traffic of memory.
    It can be differentiated itself, and then makes all logits at once.

    Args:
        hidden_ND: of any floating dtype; under autocast the product is in autocast's.
        weight_VD: the matrix.
        bias_V: added to every row.
        targets_N: int64 below V.
        cap: z becomes cap · tanh(z / cap).
        without: an id whose logit is -inf.
        best: whether the likeliest ids are asked for.

    Returns:
        float32 [N]; int64 [N], 0 where not asked for.
    """
    device = hidden_ND.device.type
    lowered = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    form = _Form(cap, without, best, torch.get_autocast_dtype(device) if lowered else hidden_ND.dtype)
    made: tuple[torch.Tensor, torch.Tensor] = _LinearNats.apply(hidden_ND, weight_VD, bias_V, targets_N, form)  # type: ignore[no-untyped-call]  # torch
    return made


def _chunks(weight_VD: torch.Tensor, rows: int) -> Iterator[slice]:
    """Parts of the rows whose logits are made at once."""
    most = max(1, _ENTRIES.get(weight_VD.device.type, _ENTRIES_ELSEWHERE) // weight_VD.shape[0])
    return (slice(start, start + most) for start in range(0, rows, most))


def _bent(product_CV: torch.Tensor, form: _Form) -> torch.Tensor:
    """Logits in float32."""
    logits_CV = product_CV if form.cap is None else form.cap * torch.tanh(product_CV / form.cap)
    logits_CV = logits_CV.float()
    if form.without is not None:
        logits_CV = logits_CV.index_fill(1, torch.tensor([form.without], device=logits_CV.device), -torch.inf)
    return logits_CV


class _LinearNats(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor | None, targets_N: torch.Tensor, form: _Form
    ) -> tuple[torch.Tensor, torch.Tensor]:
        weight, bias, best_N = *_cast(form.dtype, weight_VD, bias_V), torch.zeros_like(targets_N)
        nats_N, sums_N = (torch.empty_like(targets_N, dtype=torch.float32) for _ in range(2))
        for part in _chunks(weight_VD, len(hidden_ND)):
            logits_CV = _bent(F.linear(hidden_ND[part].to(form.dtype), weight, bias), form)
            sums_N[part] = logits_CV.logsumexp(dim=1)
            nats_N[part] = sums_N[part] - logits_CV.gather(1, targets_N[part, None])[:, 0]
            if form.best:
                best_N[part] = logits_CV.argmax(dim=1)
        ctx.form = form
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, targets_N, sums_N)
        ctx.mark_non_differentiable(best_N)
        return nats_N, best_N

    @staticmethod
    def backward(ctx: Any, slope_N: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, targets_N, sums_N = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient is to be differentiated
            return _differentiable(hidden_ND, weight_VD, bias_V, targets_N, slope_N, ctx.form)
        return _slopes(hidden_ND, weight_VD, bias_V, (targets_N, sums_N, slope_N), ctx.form, ctx.needs_input_grad)


def _slopes(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor | None,
    rows_N: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    form: _Form,
    wanted: Sequence[bool],
) -> tuple[torch.Tensor | None, ...]:
    """softmax(z) - 1 at the target, times the slope of each row, through the cap and the product.

    Args:
        hidden_ND: as in `linear_nats`, like weight and bias.
        weight_VD: the matrix.
        bias_V: added to every row.
        rows_N: targets, logarithms of the sums of exp(z), slopes.
        form: of the logits.
        wanted: whether hidden, weight and bias have a gradient.
    """
    weight, bias = _cast(form.dtype, weight_VD, bias_V)
    precise = torch.promote_types(weight_VD.dtype, torch.float32)
    of_hidden = torch.empty_like(hidden_ND) if wanted[0] else None
    of_weight = torch.zeros_like(weight_VD, dtype=precise) if wanted[1] else None
    of_bias = torch.zeros_like(bias_V, dtype=precise) if bias_V is not None and wanted[2] else None
    for part in _chunks(weight_VD, len(hidden_ND)):
        entries_CD = hidden_ND[part].to(form.dtype)
        slope_CV = _slope_of_product(F.linear(entries_CD, weight, bias), [each[part] for each in rows_N], form)
        lowered_CV = slope_CV.to(form.dtype)
        if of_hidden is not None:
            of_hidden[part] = lowered_CV @ weight
        if of_weight is not None and lowered_CV.dtype == precise:
            of_weight.addmm_(lowered_CV.t(), entries_CD)
        elif of_weight is not None:
            of_weight += lowered_CV.t() @ entries_CD
        if of_bias is not None:
            of_bias += slope_CV.sum(dim=0)
    return of_hidden, *_back(of_weight, weight_VD), *_back(of_bias, bias_V), None, None


def _slope_of_product(product_CV: torch.Tensor, rows_C: Sequence[torch.Tensor], form: _Form) -> torch.Tensor:
    targets_C, sums_C, slope_C = rows_C
    logits_CV = _bent(product_CV, form)
    steepness_CV = None if form.cap is None else (1 - (logits_CV / form.cap).square_()).nan_to_num_(neginf=0.0)
    slope_CV = logits_CV.sub_(sums_C[:, None]).exp_()
    slope_CV.scatter_add_(1, targets_C[:, None], slope_CV.new_full((len(targets_C), 1), -1.0))
    slope_CV.mul_(slope_C[:, None])
    return slope_CV if steepness_CV is None else slope_CV.mul_(steepness_CV)


def _back(slope: torch.Tensor | None, like: torch.Tensor | None) -> list[torch.Tensor | None]:
    return [None if slope is None or like is None else slope.to(like.dtype)]


def _differentiable(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor | None,
    targets_N: torch.Tensor,
    slope_N: torch.Tensor,
    form: _Form,
) -> tuple[torch.Tensor | None, ...]:
    """The same by torch's own rules, which record what they do."""
    weight, bias = _cast(form.dtype, weight_VD, bias_V)
    logits_NV = _bent(F.linear(hidden_ND.to(form.dtype), weight, bias), form)
    nats_N = F.cross_entropy(logits_NV, targets_N, reduction="none")
    sources = [source for source in (hidden_ND, weight_VD, bias_V) if source is not None and source.requires_grad]
    slopes = iter(torch.autograd.grad(nats_N, sources, slope_N, create_graph=True))
    found = [next(slopes) if source is not None and source.requires_grad else None for source in (hidden_ND, weight_VD, bias_V)]
    return (*found, None, None)


def _cast(dtype: torch.dtype, weight: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    return weight.to(dtype), None if bias is None else bias.to(dtype)
