"""Allow and block lists: by the command line, the environment and the config; what they refuse is not imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import stackwise
from stackwise import ConfigError, UserError, cli, discover
from stackwise.host.admission import ALLOW, BLOCK, environment_lists, lists_of, refusal

EXAMPLE = Path(__file__).parents[3] / "examples" / "one-phase.yaml"


@pytest.fixture(autouse=True)
def _providers(site: Any) -> None:
    """One that tells that it was imported, and one that is fine."""
    site.install("loud", "raise SystemError('imported')")
    site.install("fine")


def call(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(cli.main, list(arguments), env=environment)


def listed(*flags: str, **environment: str) -> dict[str, tuple[str, bool]]:
    done = call(*flags, "list-providers", "--json", **environment)
    assert done.exit_code == 0
    return {row["provider"]: (row["status"], row["refused"]) for row in json.loads(done.stdout)}


def test_without_lists_everything_is_imported_that_is_asked_for() -> None:
    assert "imported" in listed()["loud"][0]


@pytest.mark.parametrize(
    ("flags", "environment", "source"),
    [
        (["--block-provider", "loud"], {}, "--block-provider"),
        (["--allow-provider", "fine", "--allow-provider", "data"], {}, "--allow-provider"),
        ([], {BLOCK: "other, loud"}, BLOCK),
        ([], {ALLOW: "fine"}, ALLOW),
    ],
)
def test_what_a_list_leaves_out_is_not_imported_and_told_with_the_list(flags: list[str], environment: dict[str, str], source: str) -> None:
    found = listed(*flags, **environment)
    assert found["loud"] == (f"left out by {source}", True)
    assert found["fine"] == found["core"] == ("ok", False)


def test_lists_add_up_and_every_one_that_refuses_is_named() -> None:
    found = listed("--block-provider", "loud", **{ALLOW: "core", BLOCK: "loud"})
    assert found["loud"][0] == f"left out by --block-provider and {ALLOW} and {BLOCK}"
    assert found["fine"][0] == f"left out by {ALLOW}"


def test_the_config_has_lists_of_its_own() -> None:
    config = stackwise.load(EXAMPLE, ["run.providers.block=[optim]"])
    with pytest.raises(ConfigError, match=r"'optim.adamw' cannot be used: provider 'optim' .* left out by run.providers.block"):
        stackwise.make_plan(config, discover())
    config = stackwise.load(EXAMPLE, ["run.providers.allow=[optim, data]"])
    with pytest.raises(ConfigError, match=r"'transformer.lm' cannot be used: .* left out by run.providers.allow"):
        stackwise.make_plan(config, discover())


def test_the_config_cannot_allow_what_the_environment_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BLOCK, "optim")
    config = stackwise.load(EXAMPLE, ["run.providers.allow=[optim, data, transformer]"])
    with pytest.raises(ConfigError, match=f"left out by {BLOCK}"):
        stackwise.make_plan(config, discover())


def test_a_plan_imports_only_the_providers_that_its_config_names() -> None:
    registry = discover()
    stackwise.make_plan(stackwise.load(EXAMPLE), registry)
    assert set(registry._known) >= {"transformer", "optim", "data"} and "loud" not in registry._known


@pytest.mark.parametrize(
    ("flags", "environment", "source"), [(["--block-provider", "lout"], {}, "--block-provider"), ([], {BLOCK: "lout"}, BLOCK)]
)
def test_a_misspelt_name_blocks_nobody_unnoticed(flags: list[str], environment: dict[str, str], source: str) -> None:
    done = call(*flags, "list-providers", **environment)
    assert done.exit_code == 2 and f"{source}: no provider 'lout' is installed — did you mean 'loud'" in done.stderr
    assert listed("--block-provider", "something-quite-different")["fine"][0] == "ok"


@pytest.mark.parametrize(
    ("flags", "environment", "source"), [(["--allow-provider", "nosuch"], {}, "--allow-provider"), ([], {ALLOW: "fine,nosuch"}, ALLOW)]
)
def test_a_name_that_is_allowed_and_that_nobody_has_is_refused(flags: list[str], environment: dict[str, str], source: str) -> None:
    done = call(*flags, "list-providers", **environment)
    assert done.exit_code == 2 and f"{source}: no provider 'nosuch' is installed" in done.stderr and "'fine'" not in done.stdout


def test_a_misspelt_name_in_a_config_is_refused() -> None:
    config = stackwise.load(EXAMPLE, ["run.providers.block=[transformers]"])
    with pytest.raises(UserError, match=r"run.providers.block: no provider 'transformers' is installed.*'transformer'"):
        stackwise.make_plan(config, discover())


def test_a_list_that_is_left_out_allows_everything_and_an_empty_one_nothing() -> None:
    assert lists_of("{}", None, None) == () and environment_lists({ALLOW: " , ", BLOCK: ""}) == ()
    (nothing,) = lists_of("run.providers.{}", (), None)
    assert refusal("waves", [nothing]) == "left out by run.providers.allow" and refusal("core", [nothing]) is None
