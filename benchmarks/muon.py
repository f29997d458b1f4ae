"""What a step of Muon costs: hidden matrices in batches of equal shape, torch's own one by one, and fused AdamW.

CPU time a step, one thread, interleaved round by round; medians. Run: python benchmarks/muon.py
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from time import process_time

import torch
from torch import nn

from stackwise import BuildContext, ParameterGroup
from stackwise_providers_optim import AdamWOptions, MuonOptions, build_adamw, build_muon

Parameters = dict[str, nn.Parameter]


def hidden_matrices(width: int, blocks: int) -> Parameters:
    """The four matrices of a block whose shapes an attention and a feed-forward layer have, without its vectors."""
    shapes = {"qkv": (3 * width, width), "output": (width, width), "up": (4 * width, width), "down": (width, 4 * width)}
    generator = torch.Generator().manual_seed(0)
    return {
        f"rack.stacks.base.{i}.{name}.weight": nn.Parameter(torch.randn(shape, generator=generator))
        for i in range(blocks)
        for name, shape in shapes.items()
    }


def ours(parameters: Parameters, precision: str) -> torch.optim.Optimizer:
    """The component `optim.muon`."""
    return build_muon(MuonOptions(precision=precision), BuildContext(seed=0), [ParameterGroup(name="default", parameters=parameters)])


def adamw(parameters: Parameters) -> torch.optim.Optimizer:
    """The component `optim.adamw`, fused."""
    return build_adamw(AdamWOptions(), BuildContext(seed=0), [ParameterGroup(name="default", parameters=parameters)])


CONTENDERS: dict[str, Callable[[Parameters], torch.optim.Optimizer]] = {
    "optim.muon, float32": lambda parameters: ours(parameters, "float32"),
    "optim.muon, bfloat16": lambda parameters: ours(parameters, "bfloat16"),
    "torch.optim.Muon (bfloat16)": lambda parameters: torch.optim.Muon(parameters.values()),
    "optim.adamw, fused": adamw,
}


def milliseconds(width: int, blocks: int, rounds: int, device: str) -> dict[str, float]:
    """Contender → median of one step."""
    optimizers = {}
    for name, make in CONTENDERS.items():
        parameters = {key: nn.Parameter(p.detach().to(device)) for key, p in hidden_matrices(width, blocks).items()}
        for parameter in parameters.values():
            parameter.grad = torch.randn_like(parameter)
        optimizers[name] = make(parameters)
        optimizers[name].step()
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in range(rounds):
        for name, optimizer in optimizers.items():
            times[name].append(timed(optimizer.step, device))
    return {name: statistics.median(values) * 1e3 for name, values in times.items()}


def timed(call: Callable[[], object], device: str) -> float:
    """Seconds of CPU, or of the device."""
    if device == "cpu":
        start = process_time()
        call()
        return process_time() - start
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    call()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / 1e3


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--blocks", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {arguments.device}, {arguments.rounds} rounds, ms a step, {4 * arguments.blocks} matrices")
    print(f"{'width':30}" + "".join(f"{width:>10}" for width in arguments.widths))
    columns = [milliseconds(width, arguments.blocks, arguments.rounds, arguments.device) for width in arguments.widths]
    for name in CONTENDERS:
        print(f"{name:30}" + "".join(f"{column[name]:10.2f}" for column in columns))


if __name__ == "__main__":
    main()
