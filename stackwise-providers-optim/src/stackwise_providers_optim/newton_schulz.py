"""Orthogonalisation of matrices by the Newton–Schulz iteration, equal shapes in one batch.

B matrices of a batch, M rows and N columns with M ≤ N.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the odd quintic aX + b(XXᵀ)X + c(XXᵀ)²X (Jordan et al. 2024, "Coefficients").

Why it works: with X = U·S·Vᵀ it is U·p(S)·Vᵀ, p(s) = as + bs³ + cs⁵, so it changes singular values alone. The slope a at 0 lifts
small ones fast, and once near 1 they stay near 1, though they do not converge to it: Muon needs no more."""

_TINY = 1e-7
_BATCH_ELEMENTS = 2**24
"""Larger batches are split: big matrices keep a device busy one by one, and stacking them costs memory."""


def orthogonalize(matrices: Sequence[Tensor], steps: int, dtype: torch.dtype) -> list[Tensor]:
    """Bring the singular values of every matrix near 1: U·S·Vᵀ becomes about U·Vᵀ.

    Args:
        matrices: of any shapes [rows, columns]; those of equal shape, up to transposition, form one batch.
        steps: how often the polynomial is applied.
        dtype: of the computation and the result.

    Returns:
        The results in order, of the same shapes.

    Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon, section "Definition".
    """
    results: list[Tensor | None] = [None] * len(matrices)
    for members in _batches(matrices):
        wide_BMN = torch.stack([_wide(matrices[i]).to(dtype) for i in members])
        for i, result_MN in zip(members, _iterate(wide_BMN, steps), strict=True):
            results[i] = result_MN.T if _is_tall(matrices[i]) else result_MN
    return [matrix for matrix in results if matrix is not None]


def _iterate(x_BMN: Tensor, steps: int) -> Tensor:
    a, b, c = COEFFICIENTS
    x_BMN = x_BMN / x_BMN.norm(dim=(-2, -1), keepdim=True).clamp(min=_TINY)
    for _ in range(steps):
        gram_BMM = x_BMN @ x_BMN.mT
        inner_BMM = torch.baddbmm(gram_BMM, gram_BMM, gram_BMM, beta=b, alpha=c)
        x_BMN = torch.baddbmm(x_BMN, inner_BMM, x_BMN, beta=a)
    return x_BMN


def _batches(matrices: Sequence[Tensor]) -> list[list[int]]:
    """Indices of the matrices of each batch."""
    alike: dict[tuple[int, int, torch.device], list[int]] = {}
    for i, matrix in enumerate(matrices):
        rows, columns = sorted(matrix.shape)
        alike.setdefault((rows, columns, matrix.device), []).append(i)
    batches = []
    for (rows, columns, _), members in alike.items():
        size = max(1, _BATCH_ELEMENTS // max(1, rows * columns))
        batches += [members[start : start + size] for start in range(0, len(members), size)]
    return batches


def _is_tall(matrix: Tensor) -> bool:
    return matrix.shape[0] > matrix.shape[1]


def _wide(matrix: Tensor) -> Tensor:
    return matrix.T if _is_tall(matrix) else matrix
