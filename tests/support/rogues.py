"""Providers that are broken in every way at once, in one folder that serves as an entry of `sys.path`."""

from __future__ import annotations

from distributions import GOOD, Site, hook

_RECORD = "[Component(name='a', options=None, factory='m:f')]"
_TRANSFORM = "def stackwise_transforms()"
_TORCH = "import random, numpy, torch\n"

BROKEN: dict[str, str | None] = {
    "raises": "raise RuntimeError('no luck')",
    "exits": "import os, sys; sys.exit(9)",
    "leaves": "class Left(BaseException): pass\nraise Left",
    "needy": "import a_library_nobody_has",
    "absent": None,
    "endless": "def f(): f()\nf()",
    "misspelt": GOOD.replace("stackwise_transforms", "stackwise_transfroms"),
    "unmarked": GOOD.replace("@hookimpl\n", ""),
    "greedy": GOOD.replace(_TRANSFORM, "def stackwise_transforms(config, registry)"),
    "null": hook("None"),
    "strange": hook("[3]"),
    "typeless": hook(_RECORD),
    "generator": GOOD.replace("return [", "yield 1 / 0 or ["),
    "twins": GOOD.replace("return [Component", "one = [Component") + "    return one + one\n",
    "reseeds": _TORCH + "random.seed(1); numpy.random.seed(1); torch.manual_seed(1); torch.set_num_threads(1)\n" + GOOD,
    "dtype": "import torch; torch.set_default_dtype(torch.float64)\n" + GOOD,
    "moves": "import os; os.chdir('/')\n" + GOOD,
    "forgets": "import os, sys; sys.path.clear(); os.environ.clear()\n" + GOOD,
    "deaf": "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + GOOD,
}
"""Provider → source of its module; None: there is no such module."""

OTHERS = ("hollow", "old", "twofold", "Bad_Name", "nameless")
"""Those that are broken by their metadata."""


def install_all(site: Site) -> None:
    """Install every one of them, one that closes stdout, and one that is fine."""
    for name, code in BROKEN.items():
        site.install(name, code)
    site.install("hollow", "", value="fake_hollow:nothing")
    site.install("old", "raise SystemError", requires=["stackwise-core<0.0.1"])
    site.install("twofold", distribution="first-of-two")
    site.install("twofold", distribution="second-of-two")
    site.install("Bad_Name", "raise SystemError", module="fake_bad_name", distribution="fake-bad-name")
    site.install_raw("nameless-1.0", None, "[stackwise.providers]\nnameless = nameless\n")
    site.install("shutting", "import sys; sys.stdout.close()\n" + GOOD)
    site.install("fine")
