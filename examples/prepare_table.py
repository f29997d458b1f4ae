"""Write 2,000 rows of Friedman's function (Annals of Statistics 19(1), 1991, section 4.1) with a category that turns one effect around.

strength = 100 + 10 sin(pi a b) + 20 (c - 1/2)^2 + 10 d s + 5 e + noise of deviation 1, with a to e uniform in [0, 1], and s = 1, -1, 0
for the kinds oak, pine, ash. A column that has no effect stands among them. The rows go to `table.csv`.

python examples/prepare_table.py
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

ROWS, SIGNS = 2000, {"oak": 1, "pine": -1, "ash": 0}

draw = np.random.default_rng(0)
kinds = draw.choice(list(SIGNS), ROWS)
numbers = draw.uniform(size=(ROWS, 6))
a, b, c, d, e, _ = numbers.T
signs = np.array([SIGNS[kind] for kind in kinds])
strength = 100 + 10 * np.sin(np.pi * a * b) + 20 * (c - 0.5) ** 2 + 10 * d * signs + 5 * e + draw.normal(size=ROWS)

with Path("table.csv").open("w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    writer.writerow(["a", "b", "c", "d", "e", "f", "kind", "strength"])
    writer.writerows([*map(repr, row.tolist()), kind, repr(y)] for row, kind, y in zip(numbers, kinds, strength.tolist(), strict=True))
