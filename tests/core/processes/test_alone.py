"""A run in one process does nothing that several need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from several import SHORT

WATCHED = """
import sys, threading
from stackwise.cli import main
from stackwise.machine.machine import TrainingMachine
train = TrainingMachine.train
def noted(machine):
    events = train(machine)
    for event in events:
        yield event
    assert machine.reduction is None and machine._together is None and machine.settings.ranks is None and machine.settings.sharding is None
    assert not [each.name for each in threading.enumerate() if each.name.startswith("stackwise-watch")]
    print("trained")
TrainingMachine.train = noted
main(["run", "exp.yaml"], standalone_mode=False)
from torch import distributed
assert not distributed.is_initialized()
parts = ("stackwise.processes.sharding", "stackwise.processes.launch", "torch.distributed.elastic.agent")  # FSDP2 comes with torch._dynamo
assert not [name for name in sys.modules if name.startswith(parts)]
"""


def test_one_process_joins_nothing_and_loads_neither_the_agent_nor_what_divides_models(tmp_path: Path) -> None:
    (tmp_path / "exp.yaml").write_text(SHORT)
    done = subprocess.run([sys.executable, "-c", WATCHED], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "trained" in done.stdout, done.stderr
