"""Write pairs of continuations of lines of the standard library to `preferences.jsonl`.

The prompt is two lines, the chosen response the line that follows them, the rejected one a line from elsewhere.

python examples/prepare_preferences.py
"""

from __future__ import annotations

import json
import random
import sysconfig
from pathlib import Path

draw = random.Random(0)
triples = []
for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    triples += [lines[i : i + 3] for i in range(0, len(lines) - 2, 12)]
triples = [triple for triple in draw.sample(triples, len(triples)) if sum(map(len, triple)) < 120][:4000]
with Path("preferences.jsonl").open("w", encoding="utf-8") as file:
    for first, second, third in triples:
        record = {"prompt": f"{first}\n{second}\n", "chosen": third, "rejected": draw.choice(triples)[2]}
        file.write(json.dumps(record) + "\n")
