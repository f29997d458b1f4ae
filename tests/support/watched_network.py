"""Processes whose attempts to reach a network are refused and written down."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_UPDATE_DOWNLOAD_COUNTS")
_SITE = """
import os, socket
def _refused(*asked, **more):
    with open(os.environ["NETWORK_LOG"], "a") as log:
        log.write(f"{asked!r}\\n")
    raise OSError("no network in tests")
_connect = socket.socket.connect
def connect(self, address):
    return _connect(self, address) if self.family == socket.AF_UNIX else _refused(address)
socket.getaddrinfo, socket.socket.connect = _refused, connect
"""


def watched_environment(folder: Path) -> tuple[Mapping[str, str], Path]:
    """The environment of such processes, in which nothing asks libraries to stay offline, and the file of attempts, not there without one.

    Args:
        folder: for the two files.
    """
    site, log = folder / "site", folder / "network.log"
    site.mkdir()
    (site / "sitecustomize.py").write_text(_SITE)
    kept = {name: value for name, value in os.environ.items() if name not in _OFFLINE}
    return {**kept, "PYTHONPATH": str(site), "NETWORK_LOG": str(log), "OMP_NUM_THREADS": "1"}, log
