"""A provider that ends the process, or leaves a thread in it, is listed as broken, and every command comes to its end."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

WAITING = "import threading\nthreading.Thread(target=threading.Event().wait).start()\n"
"""Leaves a thread that the interpreter waits for at its end."""

ENDING = [
    ("import os; os._exit(7)", "exit code 7"),
    ("import os; os._exit(0)", "exit code 0"),
    ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "signal SIGKILL"),
    ("import ctypes; ctypes.string_at(0)", "signal SIGSEGV"),
]


@pytest.mark.parametrize(("code", "end"), ENDING)
def test_a_provider_that_ends_the_process_is_listed_as_broken(distributions: ModuleType, tmp_path: Path, code: str, end: str) -> None:
    site = distributions.Site(tmp_path)
    site.install("aaa")
    site.install("ending", code)
    site.install("zzz", "import os; os._exit(9)")
    site.install("zzzz")
    rows = distributions.listed([tmp_path])
    assert rows["ending"][0]["status"] == f"loading 'fake_ending' ended the whole process ({end})"
    assert [rows[name][0]["status"] for name in ("aaa", "zzzz", "core")] == ["ok"] * 3 and "exit code 9" in str(rows["zzz"][0]["status"])


def test_a_thread_that_is_left_is_listed_and_the_listing_ends(distributions: ModuleType, tmp_path: Path) -> None:
    site = distributions.Site(tmp_path)
    site.install("waiting", WAITING)
    assert "a running thread" in str(distributions.listed([tmp_path])["waiting"][0]["status"])


def test_a_command_that_asks_for_it_ends_too_with_the_providers_fault(distributions: ModuleType, tmp_path: Path) -> None:
    site = distributions.Site(tmp_path)
    site.install("waiting", WAITING)
    done = distributions.run_stackwise("show", "waiting.thing", sites=[tmp_path])
    assert done.returncode == 3 and "a running thread" in done.stderr


def test_near_names_survive_a_provider_that_ends_the_process(distributions: ModuleType, tmp_path: Path) -> None:
    site = distributions.Site(tmp_path)
    site.install("fine")
    site.install("ending", "import os; os._exit(0)")
    done = distributions.run_stackwise("show", "fine.thin", sites=[tmp_path])
    assert done.returncode == 2 and "did you mean 'fine.thing'" in done.stderr


def test_what_a_child_process_learns_is_what_this_one_would(distributions: ModuleType, tmp_path: Path) -> None:
    site = distributions.Site(tmp_path)
    site.install("fine")
    site.install("pair", distributions.hook("[Component(name='a', options='m:O', factory='m:f', example={'size': (1, 2)})]"))
    site.install("broken", "raise ValueError('no luck')")
    code = """
import attrs, threading
from stackwise import discover
def plain(registry):
    return [attrs.evolve(p, seconds=0.0) for p in registry.providers]
here = discover()
for name in here._offers:
    here.claimants(name)
print(plain(discover()) == plain(here), [type(p.components[0].component.example["size"]) for p in here.providers if p.name == "pair"])
"""
    done = distributions.run_python(code, sites=[tmp_path])
    assert done.stdout == "True [<class 'tuple'>]\n", done.stderr


def test_without_fork_the_providers_are_loaded_here(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    from stackwise.host.discovery import discover

    monkeypatch.delattr(os, "fork")
    site.install("fine")
    assert next(p for p in discover(allow={"fine"}).providers if p.name == "fine").ok
