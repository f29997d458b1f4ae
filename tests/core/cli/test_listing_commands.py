"""`stackwise`, `list-providers`, `show` and `completion` as a user or a script meets them."""

from __future__ import annotations

import json
import subprocess
import sys
from types import ModuleType
from typing import Any

import click
import pytest
import rogues
from click.testing import CliRunner, Result

from stackwise import __version__, cli
from stackwise.cli.show import show
from stackwise.errors import ProviderError, TrainingHalted, UserError
from stackwise.host.provider import KINDS

GOOD_REGISTER = {"provider": "fine", "distribution": "fake-fine", "version": "1.0", "status": "ok"}


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, list(arguments))


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes `stackwise run` a command that raises what the test says."""

    def install(error: BaseException) -> None:
        @click.command()
        def run() -> None:
            raise error

        module = ModuleType("fake_run_command")
        module.run = run  # type: ignore[attr-defined] # a module made for this test
        monkeypatch.setitem(sys.modules, "fake_run_command", module)
        monkeypatch.setattr(cli, "COMMANDS", {**cli.COMMANDS, "run": ("fake_run_command:run", "Train.")})

    return install


def test_version_and_help() -> None:
    assert call("--version").output == f"stackwise {__version__}\n"
    helped = call("--help")
    assert helped.exit_code == 0
    assert [name for name in cli.COMMANDS if name not in helped.output] == []
    assert "Exit codes" in helped.output


@pytest.mark.parametrize("command", ["list-providers", "show", "completion"])
def test_each_help_says_what_gives_an_example_and_the_exit_codes(command: str) -> None:
    text = call(command, "--help").output
    assert f"stackwise {command}" in text.split("Usage:", 1)[1].split("\n", 1)[1] or command == "completion"
    assert "Exit code" in text


def test_a_misspelt_command_is_the_users_with_the_near_name() -> None:
    result = call("list-provider")
    assert result.exit_code == 2 and "did you mean 'list-providers' or" in result.stderr


@pytest.mark.parametrize(
    ("error", "code", "begins"),
    [
        (UserError("the key is wrong"), 2, "error: the key is wrong"),
        (ProviderError("it broke"), 3, "provider error: it broke"),
        (TrainingHalted("not finite"), 4, "error: not finite"),
        (KeyboardInterrupt(), 130, "stopped"),
        (ZeroDivisionError("by zero"), 1, "this is a bug in StackWise, please report it: ZeroDivisionError: by zero"),
    ],
)
def test_errors_are_sentences_and_exit_codes(raising: Any, error: BaseException, code: int, begins: str) -> None:
    raising(error)
    result = call("run")
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith(begins) and "Traceback" not in result.stderr
    debugged = call("--debug", "run")
    assert debugged.exit_code == code and "Traceback" in debugged.stderr


def test_list_providers_as_json(site: Any) -> None:
    site.install("fine")
    site.install("bad", "raise ValueError('no luck')")
    result = call("list-providers", "--json")
    assert result.exit_code == 0
    rows = {row["provider"]: row for row in json.loads(result.stdout)}
    assert {key: rows["fine"][key] for key in GOOD_REGISTER} == GOOD_REGISTER
    assert rows["fine"]["components"] == [{"kind": "transform", "name": "thing", "id": "fine.thing", "summary": "a thing"}]
    assert "no luck" in rows["bad"]["status"] and rows["bad"]["components"] == []


def test_list_providers_as_a_table(site: Any) -> None:
    site.install("fine")
    site.install("bad", "raise ValueError('no luck')")
    lines = call("list-providers").stdout.splitlines()
    (fine,) = [line for line in lines if line.startswith("fine ")]
    assert fine.split() == ["fine", "fake-fine", "1.0", "ok"]
    assert any(line.split() == ["transform", "fine.thing", "a", "thing"] for line in lines)
    assert any("ValueError: no luck" in line for line in lines)


def test_a_slow_provider_is_named(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install("fine")
    monkeypatch.setattr("stackwise.cli.list_providers.SLOW_SECONDS", 0.0)
    result = call("list-providers")
    assert "provider 'fine' (fake-fine) took" in result.stderr and "took" not in result.stdout


@pytest.mark.parametrize("id", ["fine.thing", "transform:fine.thing"])
def test_show_explains_a_component(site: Any, id: str) -> None:
    site.install("fine")
    result = call("show", id)
    assert result.exit_code == 0, result.stderr
    for part in [
        "fine.thing  (transform)",
        "fake-fine 1.0",
        "a thing",
        "size: int = 3",
        "how many",
        "at least 1",
        "at most 9",
        "use: fine.thing",
    ]:
        assert part in result.stdout


OPTIONS = """
from attrs import frozen
from stackwise import Component, RackSpec, Stack, TensorSpec, dimension, follows_task, hookimpl, option, scheduled, stacks

@frozen(kw_only=True)
class Options:
    width: int = dimension("width", doc="features")
    stacks: tuple[Stack, ...] = stacks(doc="blocks")
    dropout: float = scheduled(0.0, doc="share zeroed", minimum=0, maximum=1)
    decay: float = option(0.5, doc="share kept", below=1)
    attention: str | None = follows_task("attention", doc="what is seen", choices=("causal",))
    start: str = option("here", doc="where", key="from")
    tags: list = option(factory=list, doc="marks")

    def to_spec(self):
        return RackSpec(stacks={s.name: s.blocks for s in self.stacks}, side={"positions": TensorSpec("batch time", "integer")})

@hookimpl
def stackwise_racks():
    return [Component(name="r", options=__name__ + ":Options", factory=__name__ + ":Options", example=EXAMPLE)]
"""


def test_show_knows_rules_and_the_spec_of_the_example(site: Any) -> None:
    site.install("fine", OPTIONS.replace("EXAMPLE", "{'stacks': [{'base': 2}], 'from': 'there'}"))
    shown = call("show", "fine.r")
    assert shown.exit_code == 0, shown.stderr
    text = " ".join(shown.stdout.split())
    for part in [
        "stacks: tuple[Stack, ...] (required)",
        "may follow time",
        "'width' is filled",
        "attention that the task needs",
        "one of causal",
        "from: str = 'here'",
        "tags: list = []",
        "stacks: base 2",
        "positions integer[batch time]",
        "config's model.rack: use: fine.r",
    ]:
        assert part in text, part


def test_show_says_when_the_spec_depends_on_more(site: Any) -> None:
    site.install("fine", OPTIONS.replace("EXAMPLE", "{}"))
    shown = call("show", "fine.r")
    assert shown.exit_code == 0 and "known once the options are complete" in shown.stdout


@pytest.mark.parametrize(
    ("id", "code", "part"),
    [
        ("fine.thin", 2, "did you mean 'fine.thing'"),
        ("thing", 2, "'<provider>.<component>' — did you mean 'fine.thing'"),
        ("nowhere.thing", 2, "pip install stackwise-providers-nowhere"),
        ("rack:fine.thing", 2, "of kind transform"),
        ("rak:fine.thing", 2, "did you mean 'rack'"),
        ("bad.thing", 3, "no luck"),
        ("twin.thing", 3, "one-twin 1.0 and two-twin 1.0"),
    ],
)
def test_show_says_what_is_missing(site: Any, id: str, code: int, part: str) -> None:
    site.install("fine")
    site.install("bad", "raise ValueError('no luck')")
    site.install("twin", distribution="one-twin")
    site.install("twin", distribution="two-twin")
    result = call("show", id)
    assert result.exit_code == code and part in result.stderr, result.stderr


def test_component_ids_complete(site: Any) -> None:
    site.install("fine")
    argument = show.params[0]
    with click.Context(show) as ctx:
        assert [item.value for item in argument.shell_complete(ctx, "fine.t")] == ["fine.thing"]
        assert [item.value for item in argument.shell_complete(ctx, "transform:fine.")] == ["transform:fine.thing"]
        assert argument.shell_complete(ctx, "rack:fine.") == []


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_prints_code_for_the_shell(shell: str) -> None:
    result = call("completion", shell)
    assert result.exit_code == 0 and "_STACKWISE_COMPLETE" in result.stdout


def test_every_fault_at_once_leaves_the_listing_whole(distributions: ModuleType, tmp_path: Any) -> None:
    first, second = (distributions.Site(tmp_path / name) for name in ("first", "second"))
    for site in (first, second):
        site.folder.mkdir()
        site.install("twice", distribution="fake-twice")
    rogues.install_all(first)
    rows = distributions.listed([first.folder, second.folder])
    for name in ("twice", "fine", "shutting", "core", "transformer"):
        assert [row["status"] for row in rows[name]] == ["ok"]
    for name in (*rogues.BROKEN, *rogues.OTHERS):
        assert all(row["status"] != "ok" for row in rows[name]), name
    assert {row["distribution"] for row in rows["twofold"]} == {"first-of-two", "second-of-two"}


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["list-providers"], ["show", "--help"], ["show", "fine.thing"]])
def test_listing_imports_neither_torch_nor_what_it_does_not_need(distributions: ModuleType, tmp_path: Any, arguments: list[str]) -> None:
    site = distributions.Site(tmp_path)
    site.install("fine")
    code = (
        "import sys\nfrom stackwise.cli import main\n"
        "try: main()\nexcept SystemExit as left: code = left.code\n"
        "print(sorted({'torch', 'numpy', 'cattrs', 'rich', 'yaml'} & set(sys.modules)), file=sys.stderr); sys.exit(code)"
    )
    done = distributions.run_python(code, *arguments, sites=[tmp_path])
    needed = ["yaml"] if arguments == ["show", "fine.thing"] else []
    assert (done.returncode, done.stderr) == (0, f"{needed}\n")


def test_a_reader_that_leaves_is_no_error() -> None:
    code = "from stackwise.cli import main; main()"
    with subprocess.Popen([sys.executable, "-c", code, "list-providers"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == cli.BROKEN_PIPE


def test_a_terminal_with_few_characters_gets_every_line(distributions: ModuleType, tmp_path: Any) -> None:
    site = distributions.Site(tmp_path)
    site.install("fine", distributions.GOOD.replace("a thing", "a → thing"))
    done = distributions.run_stackwise("list-providers", sites=[tmp_path], environment={"PYTHONIOENCODING": "iso-8859-1", "COLUMNS": "20"})
    assert done.returncode == 0 and "a \\u2192 thing" in done.stdout


def test_show_as_json_says_where_from_and_everything_of_an_option(site: Any) -> None:
    site.install("fine", OPTIONS.replace("EXAMPLE", "{'stacks': [{'base': 2}], 'from': 'there'}"))
    (row,) = json.loads(call("show", "fine.r", "--json").stdout)
    assert (row["id"], row["kind"], row["distribution"], row["version"], row["editable"]) == ("fine.r", "rack", "fake-fine", "1.0", False)
    assert len(row["sha256"]) == 64 and ":" in row["options_at"] and "fake_fine.py" in row["options_at"]
    options = {option["key"]: option for option in row["options"]}
    assert options["dropout"]["may_follow_time"] and not options["width"]["may_follow_time"]
    assert (options["dropout"]["default"], options["dropout"]["minimum"], options["dropout"]["maximum"]) == (0.0, 0, 1)
    assert options["decay"]["below"] == 1
    assert options["stacks"]["required"] and options["from"]["doc"] == "where" and options["from"]["default"] == "here"
    assert row["example"] == {"use": "fine.r", "stacks": [{"base": 2}], "from": "there"} and row["stands_at"] == "model.rack"


def test_every_kind_has_its_place_in_a_config(site: Any) -> None:
    from stackwise.cli.show import _PLACES

    assert set(_PLACES) == set(KINDS)
