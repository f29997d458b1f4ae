"""Losses of a pair of responses, from the log-probabilities that the model gives them.

Shapes: B pairs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def dpo_margin(
    chosen_B: torch.Tensor, rejected_B: torch.Tensor, known_chosen_B: torch.Tensor, known_rejected_B: torch.Tensor, *, beta: float
) -> torch.Tensor:
    """β[(log π_w - log ref_w) - (log π_l - log ref_l)], log-probabilities summed over the response (arXiv 2305.18290, equation 7)."""
    return beta * ((chosen_B - known_chosen_B) - (rejected_B - known_rejected_B))


def simpo_margin(chosen_mean_B: torch.Tensor, rejected_mean_B: torch.Tensor, *, beta: float) -> torch.Tensor:
    """β(log π_w / |y_w| - log π_l / |y_l|), means over the tokens of the response (arXiv 2405.14734, equation 6, without γ)."""
    return beta * (chosen_mean_B - rejected_mean_B)


def log_odds_ratio(chosen_mean_B: torch.Tensor, rejected_mean_B: torch.Tensor) -> torch.Tensor:
    """log(odds_w / odds_l) with odds = P / (1 - P) and log P the mean over the tokens (arXiv 2403.07691, equations 3 to 5)."""
    return _log_odds(chosen_mean_B) - _log_odds(rejected_mean_B)


def preferred(margin_B: torch.Tensor) -> torch.Tensor:
    """-log σ(margin): the negative log-likelihood that the first of two is preferred (Bradley and Terry)."""
    return -F.logsigmoid(margin_B)


def _log_odds(log_p_B: torch.Tensor) -> torch.Tensor:
    log_p_B = log_p_B.clamp(max=-1e-6)  # a certain response would have infinite odds
    return log_p_B - torch.log(-torch.expm1(log_p_B))
