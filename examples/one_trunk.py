"""The final loss of several budgets from one trunk at a constant rate and a decay after it for each (arXiv 2404.06395, 2405.18392).

python examples/one_trunk.py [CONFIG] [--budgets 125,250,500,1000] [--decay 20] [--output runs/trunk]

CONFIG has a rate `wsd` whose warm-up is written in steps, and an evaluation at the end; `one-trunk.yaml` is taken when it is left out.
Each end is the run that its horizon alone would have given, but for the rounding of rates, and is printed with its loss.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path


def stackwise(*arguments: str) -> None:
    """One command of the command line."""
    subprocess.run(["stackwise", *arguments], check=True)


def last_evaluation(run: Path) -> dict[str, float]:
    """The metrics of the last evaluation of a run."""
    events = map(json.loads, (run / "events.jsonl").read_text(encoding="utf-8").splitlines())
    found: dict[str, float] = [event["metrics"] for event in events if event["event"] == "evaluated"][-1]
    return found


def main() -> None:
    """Train the trunk, branch at every budget, print the ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path, nargs="?", default=Path(__file__).with_name("one-trunk.yaml"))
    parser.add_argument("--budgets", default="125,250,500,1000", help="steps of each end, the decay included")
    parser.add_argument("--decay", type=int, default=20, help="percent of a budget in which the rate falls to zero")
    parser.add_argument("--output", type=Path, default=Path("runs/trunk"))
    asked = parser.parse_args()
    budgets = sorted(int(budget) for budget in asked.budgets.split(","))
    leaves = {budget: budget - budget * asked.decay // 100 for budget in budgets}
    wsd = "optimizer.lr.wsd.decay"
    at = ", ".join(f"{step} steps" for step in leaves.values())
    trunk = [f"run.horizon={leaves[budgets[-1]]} steps", f"{wsd}=0%", f"run.checkpoint.at=[{at}]"]
    stackwise("run", str(asked.config), "--output", str(asked.output), *(word for each in trunk for word in ("--set", each)))
    ends = {budget: asked.output.with_name(f"{asked.output.name}-{budget}") for budget in budgets}
    for budget, end in ends.items():
        settings = [f"run.horizon={budget} steps", f"{wsd}={budget - leaves[budget]} steps", "run.checkpoint.at=null"]
        own = [word for each in settings for word in ("--set", each)]
        stackwise("branch", str(asked.output), "--at", f"step {leaves[budget]}", "--output", str(end), *own)
    print("budget  leaves the trunk at  loss")
    for budget, end in ends.items():
        print(f"{budget:>6}  {leaves[budget]:>19}  {last_evaluation(end)['loss']:.4f}")
    steps = leaves[budgets[-1]] + sum(budget - leaves[budget] for budget in budgets)
    print(f"{steps:,} steps in place of {sum(budgets):,}")


if __name__ == "__main__":
    main()
