"""Discovery: every fault of a provider is found, named and kept from the others."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import warnings
from types import ModuleType
from typing import Any

import pytest
from distributions import GOOD

from stackwise import __version__
from stackwise.contracts import hookspecs
from stackwise.errors import ProviderError, UnknownComponentError
from stackwise.host.admission import lists_of
from stackwise.host.discovery import discover
from stackwise.host.hooks import ProviderDeprecation
from stackwise.host.provider import Provider

SIGNATURE = "def stackwise_transforms() -> Iterable[Component]"
RECORD = "@hookimpl\ndef stackwise_transforms(): return [Component(**{{**dict(name='a', options='m:O', factory='m:f'), **dict({})}})]"
TWICE = '[Component(name="a", options="m:O", factory="m:f")] * 2'


def status(provider: str, **options: Any) -> str:
    found = discover(allow={provider}, **options).provider(provider)
    assert found is not None
    return found.status


def test_a_good_provider_is_registered_with_its_distribution(site: Any) -> None:
    site.install("fine", version="2.5")
    registry = discover(allow={"fine"})
    found = registry.get("transform", "fine.thing")
    assert (found.provider, found.distribution, found.version) == ("fine", "fake-fine", "2.5")
    assert found.load_options()().size == 3
    provider = registry.provider("fine")
    assert provider is not None
    assert (provider.ok, provider.editable, provider.location) == (True, False, str(site.folder / "fake_fine.py"))


@pytest.mark.parametrize(
    ("files", "value", "location"),
    [
        (["fake_space/part/__init__.py"], "fake_space.part", "fake_space/part"),
        (["fake_space/part/__init__.py", "fake_space/part/deep/__init__.py"], "fake_space.part.deep", "fake_space/part"),
        (["fake_space/part/__init__.py", "fake_space/part/deep/hooks.py"], "fake_space.part.deep.hooks", "fake_space/part"),
        (["fake_space/hooks.py"], "fake_space.hooks", "fake_space"),
        (["fake_whole/__init__.py", "fake_whole/hooks.py"], "fake_whole.hooks", "fake_whole"),
    ],
)
def test_the_code_of_a_provider_is_its_own_also_in_a_namespace(site: Any, files: list[str], value: str, location: str) -> None:
    for file in files:
        (site.folder / file).parent.mkdir(parents=True, exist_ok=True)
        (site.folder / file).write_text(GOOD)
    names = value.split(".")
    site.modules.extend(".".join(names[: depth + 1]) for depth in range(len(names)))
    site.install("fine", None, value=value)
    found = discover(allow={"fine"}).provider("fine")
    assert found is not None
    assert (found.status, found.location) == ("ok", str(site.folder / location))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise RuntimeError('no luck')", "RuntimeError: no luck"),
        ("import sys; sys.exit(3)", "sys.exit(3)"),
        ("import a_library_nobody_has", "'a_library_nobody_has' is missing"),
        ("def broken(:", "SyntaxError"),
        ("class Left(BaseException): pass\nraise Left('early')", "Left: early"),
        ("def f(): f()\nf()", "RecursionError"),
    ],
)
def test_an_import_that_fails_is_put_aside_with_module_and_distribution(site: Any, code: str, reason: str) -> None:
    site.install("bad", code)
    site.install("fine")
    registry = discover(allow={"bad", "fine"})
    bad = registry.provider("bad")
    assert bad is not None
    assert "fake_bad" in bad.status and "fake-bad 1.0" in bad.status and reason in bad.status
    assert registry.get("transform", "fine.thing").provider == "fine"
    with pytest.raises(ProviderError, match=r"'bad\.thing'") as caught:
        registry.get("transform", "bad.thing")
    assert bad.status in str(caught.value)
    assert (caught.value.provider, caught.value.distribution, caught.value.exit_code) == ("bad", "fake-bad", 3)


def test_an_entry_point_to_a_missing_attribute(site: Any) -> None:
    site.install("bad", "", value="fake_bad:nothing")
    assert "'fake_bad:nothing' of fake-bad 1.0" in status("bad") and "AttributeError" in status("bad")


def test_an_entry_point_that_is_no_reference(site: Any) -> None:
    site.install("bad", None, value="not-a-module!")
    assert "'not-a-module!' of fake-bad 1.0 does not import" in status("bad")


def test_a_keyboard_interrupt_is_the_users(site: Any) -> None:
    site.install("slow", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        discover(allow={"slow"}).provider("slow")


def test_two_distributions_with_one_provider_name_are_both_named_and_not_imported(site: Any) -> None:
    for distribution in ("first-one", "second-one"):
        site.install("twin", "raise SystemError('imported')", distribution=distribution)
    registry = discover(allow={"twin"})
    claimants = [p for p in registry.providers if p.name == "twin"]
    assert [p.distribution for p in claimants] == ["first-one", "second-one"]
    assert all("first-one 1.0 and second-one 1.0" in p.status for p in claimants)
    with pytest.raises(ProviderError, match=r"first-one 1\.0 and second-one 1\.0"):
        registry.get("transform", "twin.thing")


def test_one_distribution_seen_twice_is_loaded_once(site: Any, distributions: ModuleType, tmp_path: Any, monkeypatch: Any) -> None:
    other = distributions.Site(tmp_path / "other")
    other.folder.mkdir()
    site.install("fine", version="2.0")
    other.install("fine", distribution="Fake_Fine", version="1.0")
    monkeypatch.setattr(sys, "path", [*sys.path, str(other.folder)])
    found = [p for p in discover(allow={"fine"}).providers if p.name == "fine"]
    assert [(p.version, p.status) for p in found] == [("2.0", "ok")]


def test_what_an_editable_install_leaves_beside_its_sources_is_the_same_distribution(
    site: Any, distributions: ModuleType, tmp_path: Any, monkeypatch: Any
) -> None:
    """setuptools writes an `.egg-info` beside the sources, and the path leads there."""
    site.install("fine", version="2.0")
    left = tmp_path / "src" / "fake_fine.egg-info"
    left.mkdir(parents=True)
    (left / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: fake-fine\nVersion: 2.0\n", encoding="utf-8")
    (left / "entry_points.txt").write_text("[stackwise.providers]\nfine = fake_fine\n", encoding="utf-8")
    for path in ([*sys.path, str(left.parent)], [str(left.parent), *sys.path]):
        monkeypatch.setattr(sys, "path", path)
        found = [p for p in discover(allow={"fine"}).providers if p.name == "fine"]
        assert [(p.distribution, p.version, p.status) for p in found] == [("fake-fine", "2.0", "ok")]


@pytest.mark.parametrize(
    ("code", "parts"),
    [
        ("@hookimpl\ndef stackwise_tranforms(): return []", ["no hook 'stackwise_tranforms'", "did you mean 'stackwise_transforms'"]),
        ("def stackwise_optimiser(): return []", ["no hook 'stackwise_optimiser'", "'stackwise_optimizers'"]),
        ("def stackwise_transforms(): return []", ["not marked", "@hookimpl"]),
        ("@hookimpl\ndef racks(): return []", ["no hook 'racks'"]),
        ("@hookimpl\ndef stackwise_transforms(config): return []", ["`def stackwise_transforms(config)`", SIGNATURE]),
        ("@hookimpl(wrapper=True)\ndef stackwise_transforms(): yield", ["wrapper"]),
        ("@hookimpl\ndef stackwise_transforms(): raise ValueError('oops')", ["ValueError: oops", SIGNATURE]),
        ("@hookimpl\ndef stackwise_transforms(): raise SystemExit(0)", ["sys.exit(0)", SIGNATURE]),
        ("@hookimpl\ndef stackwise_transforms(): yield 1 / 0", ["ZeroDivisionError", SIGNATURE]),
        ("@hookimpl\ndef stackwise_transforms(): pass", ["returned None", SIGNATURE]),
        ("@hookimpl\ndef stackwise_transforms(): return 3", ["returned int 3", SIGNATURE]),
        ("@hookimpl\ndef stackwise_transforms(): return [None]", ["returned None among", SIGNATURE]),
        ("@hookimpl\ndef stackwise_transforms(): return 'thing'", ["returned str 't' among", SIGNATURE]),
        (f"@hookimpl\ndef stackwise_transforms(): return {TWICE}", ["two components named 'a'"]),
        ("@hookimpl\ndef stackwise_transforms(): return [Component(name='A b', options='', factory='')]", ["'A b'", "lower-case"]),
        ("@hookimpl\ndef stackwise_transforms(): return [Component(nam='a')]", ["TypeError", "nam"]),
        (RECORD.format("options=None"), ["component 'a'", "options is None", "'module:attribute'"]),
        (RECORD.format("factory='m.f'"), ["component 'a'", "factory is str 'm.f'", "'module:attribute'"]),
        (RECORD.format("example=7"), ["component 'a'", "example is int 7", "a map"]),
        (RECORD.format("summary=3"), ["component 'a'", "summary is int 3", "text"]),
        ("@hookimpl\ndef stackwise_transforms(): raise BaseException('all')", ["BaseException: all", SIGNATURE]),
        ("def __getattr__(name): raise ValueError(name)\ndef __dir__(): return ['x']", ["cannot be registered", "ValueError"]),
    ],
)
def test_a_hook_that_breaks_its_contract_is_put_aside_with_what_was_expected(site: Any, code: str, parts: list[str]) -> None:
    site.install("bad", f"from stackwise import Component, hookimpl\n{code}\n")
    reason = status("bad")
    assert [part for part in parts if part not in reason] == [], reason


def test_a_hook_may_yield_and_may_go_by_another_name(site: Any) -> None:
    site.install(
        "fine",
        "from stackwise import Component, hookimpl\n@hookimpl(specname='stackwise_heads')\ndef mine():\n"
        "    yield Component(name='a', options='m:O', factory='m:f')\n",
    )
    assert discover(allow={"fine"}).get("head", "fine.a").id == "fine.a"


def test_two_functions_for_one_hook_are_refused_by_name(site: Any) -> None:
    again = "\n@hookimpl(specname='stackwise_transforms')\ndef more():\n    return []\n"
    site.install("bad", GOOD + again)
    assert "two implementations, `def more()` and `def stackwise_transforms()`" in status("bad")


def test_a_module_under_two_names_is_two_providers(site: Any) -> None:
    site.install("fine")
    site.install("second", None, module="fake_fine", distribution="fake-second")
    registry = discover(allow={"fine", "second"})
    assert [registry.get("transform", f"{name}.thing").distribution for name in ("fine", "second")] == ["fake-fine", "fake-second"]


@pytest.mark.parametrize("broken", ["", "\ndef __dir__(): return []\n", GOOD + "\n@hookimpl\ndef stackwise_heads(): return 1\n"])
def test_a_module_that_answers_every_question_with_an_error_hurts_nobody_else(site: Any, broken: str) -> None:
    """Plugins of one manager are compared, hashed and searched by pluggy; a provider's own objects never are."""
    site.install("aaa", broken + "\ndef __getattr__(name): raise RuntimeError(name)\n")
    for name in ("fine", "zzz"):
        site.install(name)
    registry = discover(allow={"aaa", "fine", "zzz"})
    assert {p.name: p.ok for p in registry.providers if p.name in ("fine", "zzz")} == {"fine": True, "zzz": True}


def test_a_provider_is_asked_once_by_all_registries_of_one_discovery(site: Any) -> None:
    site.install("fine", GOOD + "\nasked = []\n" + "\n@hookimpl\ndef stackwise_heads():\n    asked.append(1)\n    return []\n")
    registry = discover()
    lists = lists_of("here", None, ["other"])
    assert [r.get("transform", "fine.thing").id for r in (registry, registry.under(lists), registry.under(lists))] == ["fine.thing"] * 3
    assert sys.modules["fake_fine"].asked == [1]


def test_one_name_may_serve_two_kinds(site: Any) -> None:
    record = "return [Component(name='a', options='m:O', factory='m:f')]"
    hooks = "".join(f"@hookimpl\ndef stackwise_{kind}(): {record}\n" for kind in ("racks", "heads"))
    site.install("fine", f"from stackwise import Component, hookimpl\n{hooks}")
    assert [found.kind for found in discover(allow={"fine"}).named("fine.a")] == ["rack", "head"]


@pytest.mark.parametrize("requirement", ["stackwise-core>=99", "stackwise_core<0.0.1", "Stackwise.Core ~= 99.1", "stackwise-core (==98)"])
def test_a_provider_for_another_core_is_refused_before_import(site: Any, requirement: str) -> None:
    site.install("bad", "raise SystemError('imported')", requires=["attrs", requirement])
    reason = status("bad")
    assert "fake-bad 1.0 needs stackwise-core" in reason and f"{__version__} is installed" in reason and "SystemError" not in reason


@pytest.mark.parametrize(
    "requirement",
    [
        f"stackwise-core~={__version__}",
        "stackwise-core",
        "stackwise-core>=0.0.1,<99",
        "stackwise-core>=99; extra == 'new'",
        "stackwise-core-extras>=99",
    ],
)
def test_a_provider_for_this_core_is_loaded(site: Any, requirement: str) -> None:
    site.install("fine", requires=[requirement])
    assert status("fine") == "ok"


def test_a_requirement_that_cannot_be_read(site: Any) -> None:
    site.install("bad", "raise SystemError", requires=["stackwise-core ~~ 3"])
    assert "'stackwise-core ~~ 3' cannot be read" in status("bad")


@pytest.mark.parametrize("name", ["Upper", "under_score", "dot.ted", "-dash", "1st"])
def test_a_provider_name_outside_the_pattern_is_refused_before_import(site: Any, name: str) -> None:
    site.install(name, "raise SystemError('imported')", module="fake_named", distribution="fake-named")
    assert f"{name!r} is not a provider name" in status(name)


def test_what_is_not_allowed_or_is_blocked_is_not_imported_and_not_at_fault(site: Any) -> None:
    site.install("quiet", "raise SystemError('imported')")
    site.install("fine")
    for registry in (discover(allow={"fine"}), discover(allow={"fine", "quiet"}, block=["quiet"])):
        quiet = registry.provider("quiet")
        assert quiet is not None and quiet.refused and "left out" in quiet.status
        assert registry.get("transform", "fine.thing").id == "fine.thing"
        with pytest.raises(UnknownComponentError, match=r"quiet.*left out"):
            registry.get("transform", "quiet.thing")


def test_malformed_metadata_is_a_finding(site: Any) -> None:
    site.install_raw("nameless-1.0", None, "[stackwise.providers]\nx = y\n")
    site.install_raw("unruly-1.0", "Name: unruly\nVersion: 1.0\n", "[stackwise.providers]\nno equals sign\n")
    site.install_raw("elsewhere-1.0", None, "[another.group]\nno equals sign\n# stackwise.providers\n")
    site.install("fine")
    by_name: dict[str, Provider] = {p.name: p for p in discover(allow={"fine", "x", "unruly-1.0.dist-info"}).providers}
    assert by_name["fine"].ok
    assert "metadata of nameless-1.0.dist-info cannot be read" in by_name["x"].status
    assert "metadata of unruly-1.0.dist-info cannot be read" in by_name["unruly-1.0.dist-info"].status
    assert "'no equals sign'" in by_name["unruly-1.0.dist-info"].status
    assert "elsewhere-1.0.dist-info" not in by_name


def test_two_distributions_whose_folders_begin_alike_are_two(site: Any) -> None:
    """A folder of old form keeps the dashes of its name, `<name>-<version>.dist-info`, so that its name does not end at the first."""
    for name in ("fake-one", "fake-two"):
        site.install_raw(f"{name}-1.0", f"Name: {name}\nVersion: 1.0\n", f"[stackwise.providers]\n{name} = {name.replace('-', '_')}\n")
    assert {"fake-one", "fake-two"} <= {p.distribution for p in discover(allow=set()).providers}


def test_a_distribution_that_is_shadowed_offers_nothing_more(site: Any, distributions: ModuleType, tmp_path: Any, monkeypatch: Any) -> None:
    other = distributions.Site(tmp_path / "other")
    other.folder.mkdir()
    site.install("fine", version="2.0")
    other.install_raw("fake_fine-1.0", "Name: fake-fine\nVersion: 1.0\n", "[stackwise.providers]\nfine = fake_fine\nolder = fake_fine\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(other.folder)])
    assert discover(allow=set()).provider("older") is None


OPENED = """
import json, sys
opened = []
sys.addaudithook(lambda event, about: opened.append(str(about[0])) if event == "open" else None)
from stackwise import discover
discover()
opened.clear()
registry = discover()
first = [name for name in opened if sys.argv[1] in name]
registry.provider("p7")
print(json.dumps([first, [name for name in opened if sys.argv[1] in name][len(first):]]))
"""


def test_discovery_reads_one_file_of_each_distribution_and_metadata_of_whom_is_asked_for(distributions: ModuleType, tmp_path: Any) -> None:
    """As a bare scan of entry points does; benchmarks/discovery.py measures both."""
    site = distributions.Site(tmp_path)
    for i in range(12):
        site.install(f"p{i}")
    done = distributions.run_python(OPENED, str(tmp_path), sites=[tmp_path])
    assert done.returncode == 0, done.stderr
    first, then = json.loads(done.stdout)
    assert len(first) == 12 and {name.rpartition("/")[2] for name in first} == {"entry_points.txt"}
    assert {name.rpartition("/")[2] for name in then if "dist-info" in name} == {"METADATA", "direct_url.json"}
    assert all("p7" in name for name in then if name.startswith(str(tmp_path)))


def test_an_editable_installation_is_marked(site: Any) -> None:
    site.install("fine")
    record = '{"url": "file:///somewhere", "dir_info": {"editable": true}}'
    (site.folder / "fake_fine-1.0.dist-info" / "direct_url.json").write_text(record)
    found = discover(allow={"fine"}).provider("fine")
    assert found is not None and found.editable


CHANGES = [
    ("import random; random.seed(0)", "the random generator of `random`"),
    ("import numpy; numpy.random.seed(0)", "the random generator of numpy"),
    ("import torch; torch.manual_seed(0)", "the random generator of torch"),
    ("import torch; torch.set_default_dtype(torch.float64)", "the default dtype of torch"),
    ("import torch; torch.set_num_threads(torch.get_num_threads() + 1)", "the number of threads of torch"),
    ("import torch; torch.set_default_device('meta')", "the default device of torch"),
    ("import torch; torch.set_grad_enabled(False)", "the recording of gradients"),
    ("import torch; torch.set_float32_matmul_precision('medium')", "the precision of products in torch"),
    ("import os; os.environ['FAKE_PROVIDER'] = '1'; os.environ.pop('PATH')", "the environment variables"),
    ("import os; os.chdir('/')", "the working directory"),
    ("import sys; sys.path.clear()", "the module path"),
    ("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)", "a signal handler"),
]


def global_state() -> list[Any]:
    import numpy
    import torch

    numbers = numpy.random.get_state()
    return [
        random.getstate(),
        (numbers[0], numbers[1].tolist(), *numbers[2:]),
        torch.get_rng_state().tolist(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.get_float32_matmul_precision(),
        dict(os.environ),
        list(sys.path),
        os.getcwd(),  # noqa: PTH109 - the process's own state, as a string
        [signal.getsignal(number) for number in signal.valid_signals()],
    ]


@pytest.mark.parametrize(("code", "what"), CHANGES)
@pytest.mark.parametrize("place", ["import", "hook"])
def test_global_state_is_restored_and_the_change_named(site: Any, distributions: ModuleType, code: str, what: str, place: str) -> None:
    source = (
        f"{code}\n{distributions.GOOD}"
        if place == "import"
        else distributions.hook("[]", head="").replace("    return", f"    {code}\n    return")
    )
    site.install("rude", source)
    import torch

    torch.manual_seed(1)  # so that the rude seed of 0 is a change, whatever ran before
    before = global_state()
    reason = status("rude")
    assert global_state() == before
    assert what in reason and "fake_rude" in reason


FIRST = """
import sys
from stackwise import discover
print(discover().provider("rude").status)
import torch
print(torch.get_default_dtype(), torch.is_grad_enabled())
"""


def test_who_imports_torch_first_is_found_out_as_well(distributions: ModuleType, tmp_path: Any) -> None:
    site = distributions.Site(tmp_path)
    site.install("rude", "import torch\ntorch.set_default_dtype(torch.float64)\ntorch.set_grad_enabled(False)\n" + GOOD)
    told, state = distributions.run_python(FIRST, sites=[tmp_path]).stdout.splitlines()
    assert "changed the default dtype of torch and the recording of gradients" in told
    assert state == "torch.float32 True"


def test_a_reseed_is_undone_even_when_the_import_fails(site: Any) -> None:
    site.install("rude", "import random; random.seed(0); raise ValueError")
    before = random.getstate()
    assert "ValueError" in status("rude")
    assert random.getstate() == before


def test_a_thread_left_running_is_named(site: Any) -> None:
    site.install(
        "rude", "import threading; stop = threading.Event(); thread = threading.Thread(target=stop.wait, daemon=True); thread.start()"
    )
    assert "a running thread" in status("rude")
    sys.modules["fake_rude"].stop.set()
    sys.modules["fake_rude"].thread.join()


def test_discovery_works_outside_the_main_thread(site: Any) -> None:
    site.install("fine")
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(status("fine")))
    thread.start()
    thread.join()
    assert found == ["ok"]


def test_what_a_provider_prints_does_not_reach_stdout(site: Any, capsys: pytest.CaptureFixture[str]) -> None:
    site.install("loud", "print('hello')")
    assert status("loud") == "ok"
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")


def test_a_provider_that_closes_stdout_closes_nothing(site: Any, capsys: pytest.CaptureFixture[str]) -> None:
    site.install("shutting", "import sys; sys.stdout.close()\n" + GOOD)
    assert status("shutting") == "ok"
    print("out")
    print("err", file=sys.stderr)
    assert capsys.readouterr() == ("out\n", "err\n")


def test_a_hook_on_its_way_out_warns_with_the_provider_and_still_counts(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    @hookspecs.hookspec(warn_on_impl=FutureWarning("hook stackwise_transforms goes with 0.3: implement stackwise_changes"))
    def stackwise_transforms() -> None: ...

    monkeypatch.setattr(hookspecs, "stackwise_transforms", stackwise_transforms)
    site.install("fine")
    with pytest.warns(ProviderDeprecation, match=r"provider 'fine' \(fake-fine 1.0\): hook stackwise_transforms goes with 0.3"):
        assert discover(allow={"fine"}).get("transform", "fine.thing").provider == "fine"


def test_a_provider_without_fault_warns_of_nothing(site: Any) -> None:
    site.install("fine")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert discover(allow={"fine"}).get("transform", "fine.thing")


def test_every_fault_at_once_leaves_the_healthy_ones_usable(site: Any) -> None:
    site.install("raises", "raise RuntimeError('no luck')")
    site.install("exits", "import sys; sys.exit(0)")
    site.install("needy", "import not_there_at_all")
    site.install("absent", value="fake_absent:nothing")
    site.install("misspelt", GOOD.replace("stackwise_transforms", "stackwise_transfroms"))
    site.install("null", GOOD.replace("return [", "return None or None and ["))
    site.install("twins", GOOD.replace("return [Component", "one = [Component") + "    return one + one\n")
    site.install("greedy", GOOD.replace("def stackwise_transforms()", "def stackwise_transforms(config, registry)"))
    site.install("old", requires=["stackwise-core>=99"])
    site.install("seeding", "import random; random.seed(1)\n" + GOOD)
    site.install("fine")
    registry = discover()
    broken = {p.name: p.status for p in registry.providers if not p.ok}
    names = {"raises", "exits", "needy", "absent", "misspelt", "null", "twins", "greedy", "old", "seeding"}
    assert names <= set(broken) and "fine" not in broken
    assert "stackwise_transforms" in broken["misspelt"] and "expected `def stackwise_transforms()" in broken["greedy"]
    assert "the random generator of `random`" in broken["seeding"]
    assert registry.get("transform", "fine.thing").load_factory()
    for name in names:
        with pytest.raises(ProviderError, match=name):
            registry.get("transform", f"{name}.thing")
