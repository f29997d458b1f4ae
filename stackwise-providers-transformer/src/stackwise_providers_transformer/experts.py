"""A mixture of experts in the place of a block's MLP: a router sends every position to a few of several MLPs.

Sources: top-k routing and gates, arXiv 1701.06538, section 2; the load balance loss and the capacity, Switch Transformers, arXiv
2101.03961, sections 2.1 and 2.2; the router z-loss, ST-MoE, arXiv 2202.08906, equation 5.

Everything is counted row by row, so that a row is treated alike whatever stands beside it, and sums over micro-batches are those over
the whole batch.

Shapes: B batch, T time, D width, E experts, K experts of a position, N = B·T.
"""

from __future__ import annotations

from contextlib import nullcontext
from math import ceil

import torch
import torch.nn.functional as F
from torch import nn

from stackwise_providers_transformer.block_options import ExpertOptions
from stackwise_providers_transformer.mlp import make_mlp
from stackwise_providers_transformer.projection import Projection

Reported = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""Loss or metric → its sum and its denominator."""


class Router(Projection):
    """Scores of all experts for every position, in float32 whatever the precision (arXiv 2101.03961, section 2.4)."""

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """x [B, T, D] → scores [B, T, E]."""
        with nullcontext() if x_BTD.is_meta else torch.autocast(x_BTD.device.type, enabled=False):
            return F.linear(x_BTD.float(), self.weight.float())


class Experts(nn.Module):
    """Σ gate · expert(x) over the experts that the router chooses.

    Args:
        options: how many there are, and how they are chosen.
        form: of every expert: one of the decoder's MLPs.
        width: features at each position.
        features: hidden features of an expert.
        bias: whether their maps add biases.
        std: deviation that matrices start from.
        output_std: the same of what writes into the residual stream.
    """

    def __init__(self, options: ExpertOptions, form: str, *, width: int, features: int, bias: bool, std: float, output_std: float) -> None:
        super().__init__()
        self.options = options
        self.router = Router(width, options.count, std=std)
        self.experts = nn.ModuleList(
            make_mlp(form, width=width, features=features, bias=bias, std=std, output_std=output_std) for _ in range(options.count)
        )

    def forward(self, x_BTD: torch.Tensor, real_BT: torch.Tensor | None) -> tuple[torch.Tensor, Reported]:
        """What the experts add, and the sums of `balance`, `z` and, with a capacity, `dropped`.

        Args:
            x_BTD: [B, T, D].
            real_BT: bool, whether a position is real; padding counts in no sum and takes no room.
        """
        options = self.options
        scores_BTE = self.router(x_BTD)
        top_BTK, chosen_BTK = scores_BTE.topk(options.active, dim=-1)
        shares_BTE = scores_BTE.softmax(-1)
        gates_BTK = top_BTK.softmax(-1) if options.gates == "chosen" else shares_BTE.gather(-1, chosen_BTK)
        sent_BTKE = F.one_hot(chosen_BTK, options.count)
        if real_BT is not None:
            sent_BTKE = sent_BTKE * real_BT[..., None, None]
        reported = balance_and_z(scores_BTE, shares_BTE, sent_BTKE, real_BT)
        if options.capacity is not None:
            kept_BTK = self._within_capacity(sent_BTKE) if self.training else sent_BTKE.sum(-1)
            gates_BTK = gates_BTK * kept_BTK
            count = sent_BTKE.sum()
            reported["dropped"] = ((count - kept_BTK.sum()).float(), count.float())
        return self._mix(x_BTD, chosen_BTK, gates_BTK), reported

    def _within_capacity(self, sent_BTKE: torch.Tensor) -> torch.Tensor:
        """[B, T, K] 1 where a position finds room at its expert, 0 where it is dropped: earlier positions of a row come first."""
        rows, time, active, count = sent_BTKE.shape
        assert self.options.capacity is not None
        room = max(1, ceil(self.options.capacity * active * time / count))
        sent_BSE = sent_BTKE.reshape(rows, time * active, count)
        place_BSE = sent_BSE.cumsum(1)  # 1 for the first of its expert
        kept: torch.Tensor = (sent_BSE * (place_BSE <= room)).sum(-1).reshape(rows, time, active)
        return kept

    def _mix(self, x_BTD: torch.Tensor, chosen_BTK: torch.Tensor, gates_BTK: torch.Tensor) -> torch.Tensor:
        x_ND, chosen_NK = x_BTD.flatten(0, 1), chosen_BTK.flatten(0, 1)
        gates_NK = gates_BTK.flatten(0, 1)
        mixed_ND = torch.zeros_like(x_ND)
        for number, expert in enumerate(self.experts):
            n, k = self._positions(chosen_NK, gates_NK, number)
            made_MD = expert(x_ND[n])
            mixed_ND = mixed_ND.to(made_MD.dtype).index_add(0, n, made_MD * gates_NK[n, k, None].to(made_MD.dtype))
        return mixed_ND.view(x_BTD.shape)

    def _positions(self, chosen_NK: torch.Tensor, gates_NK: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The positions that an expert sees, and the place of it among their choices."""
        if chosen_NK.is_meta or type(chosen_NK) is not torch.Tensor:  # no numbers: every expert gets its share, which a price is about
            share = ceil(chosen_NK.numel() / self.options.count)
            return torch.arange(share, device=chosen_NK.device), torch.zeros(share, dtype=torch.long, device=chosen_NK.device)
        n, k = ((chosen_NK == number) & (gates_NK.detach() > 0)).nonzero(as_tuple=True)
        return n, k


def balance_and_z(scores_BTE: torch.Tensor, shares_BTE: torch.Tensor, sent_BTKE: torch.Tensor, real_BT: torch.Tensor | None) -> Reported:
    """Load balance and router z-loss, summed over positions, with the number of positions.

    The balance of a row is E · Σ_e f_e · P_e, where f_e is the share of its choices that go to expert e and P_e the mean share that
    the router gives e (arXiv 2101.03961, equation 4): 1 for a uniform router. Gradients flow through P alone. z is logsumexp(scores)²
    (arXiv 2202.08906, equation 5).

    Args:
        scores_BTE: of the router.
        shares_BTE: their softmax over all experts.
        sent_BTKE: 1 where choice k of a position is expert e; 0 for padding.
        real_BT: whether a position is real; all are when None.
    """
    active, count = sent_BTKE.shape[2:]
    real = scores_BTE.new_ones(scores_BTE.shape[:2]) if real_BT is None else real_BT.to(scores_BTE.dtype)
    real_B1 = real.sum(1, keepdim=True)
    chosen_BE = sent_BTKE.sum((1, 2)) / active
    given_BE = (shares_BTE * real[..., None]).sum(1)
    balance = count * (chosen_BE * given_BE / real_B1.clamp(min=1)).sum()
    z = (scores_BTE.logsumexp(-1).square() * real).sum()
    return {"balance": (balance, real_B1.sum()), "z": (z, real_B1.sum())}
