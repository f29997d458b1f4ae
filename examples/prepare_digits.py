"""Write scikit-learn's 1797 handwritten digits, 8 by 8 pixels from 0 to 1, in a fixed random order, to `digits.npz`.

python examples/prepare_digits.py
"""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
image = (digits.images[order, :, :, None] / 16).astype(np.float32)
np.savez("digits.npz", image=image, label=digits.target[order].astype(np.int64))
