"""The registry: what is found, and what every way of not finding says."""

from __future__ import annotations

import hashlib
import os
import random
import warnings
from pathlib import Path
from typing import Any

import pytest

import stackwise
from stackwise import select
from stackwise.contracts.components import Component, Kind
from stackwise.errors import ProviderError, UnknownComponentError
from stackwise.host.provider import KINDS, Provider, Registered, StateChanged
from stackwise.host.registry import Registry, blaming


def registered(kind: Kind, id: str, options: str = "m:O", factory: str = "m:f") -> Registered:
    provider, _, name = id.partition(".")
    component = Component(name=name, options=options, factory=factory)
    return Registered(kind=kind, id=id, component=component, provider=provider, distribution=f"{provider}-dist", version="1.0")


def provider(name: str, *components: Registered, **fields: Any) -> Provider:
    return Provider(name=name, components=components, **{"distribution": f"{name}-dist", "version": "1.0", **fields})


REGISTRY = Registry(
    (
        provider("optim", registered("optimizer", "optim.sgd"), registered("optimizer", "optim.adamw")),
        provider("text", registered("rack", "text.decoder"), registered("head", "text.lm"), registered("head", "text.decoder")),
        provider("broken", status="'broken' does not import: RuntimeError: no luck"),
    )
)


def said(kind: Kind, id: str) -> str:
    with pytest.raises(UnknownComponentError) as caught:
        REGISTRY.get(kind, id)
    assert (caught.value.exit_code, caught.value.kind, caught.value.id) == (2, kind, id)
    return str(caught.value)


def test_a_component_is_found_by_kind_and_id() -> None:
    assert REGISTRY.get("optimizer", "optim.adamw").id == "optim.adamw"
    assert REGISTRY.get("head", "text.decoder").kind == "head"


def test_iteration_is_by_kind_then_id() -> None:
    assert [found.id for found in REGISTRY.of_kind("optimizer")] == ["optim.adamw", "optim.sgd"]
    kinds = [found.kind for found in REGISTRY]
    assert kinds == sorted(kinds, key=KINDS.index) and len(kinds) == 5


def test_a_near_name_is_offered() -> None:
    text = said("optimizer", "optim.adamv")
    assert "'optim.adamv'" in text and "did you mean 'optim.adamw'" in text and "provider 'optim' is installed" in text


def test_near_names_stay_within_the_kind() -> None:
    assert "'text.lm'" not in said("rack", "text.ln")


def test_a_name_of_another_kind_is_recognised() -> None:
    assert "of kind optimizer" in said("rack", "optim.sgd")


def test_a_missing_provider_is_named_with_the_package_to_install() -> None:
    text = said("loader", "corpus.books")
    assert "no provider 'corpus' is installed" in text and "pip install stackwise-providers-corpus" in text


def test_a_misspelt_provider_gets_both_the_near_name_and_the_package() -> None:
    text = said("optimizer", "optin.adamw")
    assert "did you mean 'optim.adamw'" in text and "pip install stackwise-providers-optin" in text


def test_an_id_without_provider_is_explained() -> None:
    text = said("optimizer", "adamw")
    assert "'<provider>.<component>'" in text and "did you mean 'optim.adamw'" in text


def test_a_broken_provider_is_the_providers_fault() -> None:
    with pytest.raises(ProviderError, match=r"broken-dist 1\.0.*no luck") as caught:
        REGISTRY.get("rack", "broken.anything")
    assert caught.value.exit_code == 3


def test_a_clash_names_both_distributions_and_neither_wins() -> None:
    one = provider("twin", registered("rack", "twin.a"), distribution="one")
    two = provider("twin", registered("rack", "twin.a"), distribution="two", version="2.0")
    registry = Registry((one, two))
    assert list(registry) == []
    with pytest.raises(ProviderError, match=r"one 1\.0 and two 2\.0"):
        registry.get("rack", "twin.a")


@pytest.mark.parametrize(
    ("code", "target", "reason"),
    [
        ("raise RuntimeError('no luck')", "fake_part:O", "RuntimeError: no luck"),
        ("import sys; sys.exit(1)", "fake_part:O", "sys.exit"),
        ("import a_library_nobody_has", "fake_part:O", "'a_library_nobody_has' is missing"),
        ("", "fake_part:O", "AttributeError"),
        ("", "fake_absent:O", "'fake_absent' is missing"),
        ("", "fake_part", "not of the form"),
        ("O = 3", "fake_part:O", "an int"),
    ],
)
@pytest.mark.parametrize("part", ["options", "factory"])
def test_loading_what_is_broken_names_component_module_and_distribution(site: Any, code: str, target: str, reason: str, part: str) -> None:
    (site.folder / "fake_part.py").write_text(code)
    site.modules.append("fake_part")
    found = registered("rack", "text.part", options=target, factory=target)
    with pytest.raises(ProviderError) as caught:
        found.load_options() if part == "options" else found.load_factory()
    text = str(caught.value)
    assert reason in text and "'text.part'" in text and f"'{target}'" in text and "text-dist 1.0" in text
    assert (caught.value.provider, caught.value.distribution) == ("text", "text-dist")


def test_options_that_are_no_attrs_class_are_refused(site: Any) -> None:
    (site.folder / "fake_plain.py").write_text("class O: pass")
    site.modules.append("fake_plain")
    with pytest.raises(ProviderError, match="attrs class"):
        registered("rack", "text.part", options="fake_plain:O").load_options()


def test_a_component_that_changes_global_state_while_loading_is_undone_and_named(site: Any) -> None:
    (site.folder / "fake_rude.py").write_text("import os\nos.environ['FAKE_RUDE'] = '1'\ndef f(): ...")
    site.modules.append("fake_rude")
    with pytest.warns(StateChanged, match=r"fake_rude:f.*text-dist 1\.0.*environment"):
        assert callable(registered("rack", "text.part", factory="fake_rude:f").load_factory())
    assert "FAKE_RUDE" not in os.environ


def test_the_file_digest_follows_content_and_paths(tmp_path: Path) -> None:
    def digest() -> str:
        return provider("text", location=str(tmp_path)).file_digest

    (tmp_path / "a.py").write_bytes(b"x = 1\n")
    assert digest() == hashlib.sha256(b"a.py\x006\x00x = 1\n").hexdigest()
    first = digest()
    (tmp_path / "notes.txt").write_text("not code")
    assert digest() == first
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert digest() != first


def test_the_file_digest_is_that_of_the_code_that_was_loaded(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes(b"x = 1\n")
    loaded = provider("text", location=str(tmp_path))
    first = loaded.file_digest
    (tmp_path / "a.py").write_bytes(b"x = 2\n")
    assert loaded.file_digest == first != provider("text", location=str(tmp_path)).file_digest


def test_what_cannot_be_read_is_no_code_of_a_provider(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes(b"x = 1\n")
    first = provider("text", location=str(tmp_path)).file_digest
    (tmp_path / ".#a.py").symlink_to("somebody@somewhere.1")  # the lock of an editor
    (tmp_path / "generated.py").mkdir()
    assert provider("text", location=str(tmp_path)).file_digest == first
    assert provider("gone", location=str(tmp_path / "gone.py")).file_digest == hashlib.sha256().hexdigest()


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import os; os.chdir('/')", "the working directory"),
        ("import random; random.random()", "the random generator of `random`"),
        ("import torch; torch.manual_seed(3)", "the random generator of torch"),
        ("import torch; torch.set_default_dtype(torch.float64)", "the default dtype of torch"),
    ],
)
def test_a_factory_that_changes_global_state_is_undone_and_named(site: Any, code: str, told: str) -> None:
    import torch

    (site.folder / "fake_rude.py").write_text(f"def f(options):\n    {code}\n    return options\n")
    site.modules.append("fake_rude")
    before = os.getcwd(), random.getstate(), torch.initial_seed(), torch.get_default_dtype()  # noqa: PTH109 - the process's own state
    with pytest.warns(StateChanged, match=rf"calling 'fake_rude:f' of text-dist 1\.0 changed {told}; this was undone"):
        assert registered("rack", "text.part", factory="fake_rude:f").build(7) == 7
    assert (os.getcwd(), random.getstate(), torch.initial_seed(), torch.get_default_dtype()) == before  # noqa: PTH109


def test_what_torch_notes_in_the_environment_is_nobodys_fault(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "before")
    (site.folder / "fake_compiling.py").write_text("import os\nos.environ['TORCHINDUCTOR_CACHE_DIR'] = 'there'\ndef f(): ...")
    site.modules.append("fake_compiling")
    assert callable(registered("rack", "text.part", factory="fake_compiling:f").load_factory())
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "there"


def test_a_factory_may_draw_its_weights(site: Any) -> None:
    (site.folder / "fake_drawn.py").write_text("import torch\ndef f():\n    return torch.rand(3)\n")
    site.modules.append("fake_drawn")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert registered("rack", "text.part", factory="fake_drawn:f").build().shape == (3,)


def test_an_error_in_the_core_is_nobodys_defect_also_beside_the_cores_own_provider() -> None:
    own = provider("core", location=str(Path(stackwise.__file__).parent))
    with pytest.raises(TypeError), blaming([own]):
        select(3, 4)  # type: ignore[arg-type]


def test_a_component_that_ends_the_process_is_a_fault_with_its_name(site: Any) -> None:
    (site.folder / "fake_end.py").write_text("import sys\ndef f():\n    sys.exit(7)\n")
    site.modules.append("fake_end")
    import fake_end

    at_fault = provider("text", location=str(site.folder / "fake_end.py"))
    with pytest.raises(ProviderError, match=r"failed in f \(fake_end.py:3\): it called sys.exit\(7\)"), blaming([at_fault]):
        fake_end.f()
    with pytest.raises(SystemExit), blaming([provider("other")]):  # code of the user's own
        fake_end.f()


def test_an_error_in_a_provider_names_its_distribution_and_line(site: Any) -> None:
    (site.folder / "fake_part.py").write_text("def f():\n    raise OSError('dry')\n")
    site.modules.append("fake_part")
    import fake_part

    at_fault = provider("text", location=str(site.folder / "fake_part.py"))
    with pytest.raises(ProviderError, match=r"failed in f \(fake_part.py:2\)") as caught, blaming([provider("other"), at_fault]):
        fake_part.f()
    assert (caught.value.provider, caught.value.distribution) == ("text", "text-dist")
