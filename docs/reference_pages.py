"""Writes docs/reference/: components and commands from the installed packages, events from their classes, the face of the Python API;
and the index of docs/decisions/.

`make docs` runs it; a test fails while a page is stale.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import decisions_index
from click.testing import CliRunner

import stackwise
from stackwise.cli import COMMANDS, main
from stackwise.contracts import components, events, formats, generation, growth, hookspecs, prediction, protocols, specs, tokenizers

DOCS = Path(__file__).parent
OURS = ("core", "data", "optim", "transformer")
CONTRACTS = {
    "What a provider publishes": components,
    "Specs": specs,
    "Artifacts": protocols,
    "Growth": growth,
    "Generation": generation,
    "Predictions": prediction,
    "Tokenizers": tokenizers,
    "Formats": formats,
}
"""Heading → the module whose public classes stand under it."""
WAVES, TRANSFORMER = "tests/third_party/waves-for-stackwise/src/waves_for_stackwise", "stackwise_providers_transformer"
EXAMPLES = {
    "Embedding": f"{WAVES}/model.py:LevelIn",
    "Rack": f"{WAVES}/model.py:Conv",
    "PartwiseRack": f"{TRANSFORMER}.decoder:Decoder",
    "Head": f"{WAVES}/model.py:LevelOut",
    "LinearHead": f"{TRANSFORMER}.head:LMHead",
    "Task": f"{WAVES}/task.py:Forecast",
    "AskingTask": "examples/on_policy.py:Verified",
    "ReferencedTask": f"{TRANSFORMER}.distill:Distill",
    "PreparesEvaluations": f"{TRANSFORMER}.mask_diffusion:MaskDiffusion",
    "Loader": f"{WAVES}/data.py:Sines",
    "Fingerprinted": f"{WAVES}/data.py:Sines",
    "Skippable": f"{WAVES}/data.py:Sines",
    "Scheduled": f"{WAVES}/data.py:Jitter",
    "Stateful": f"{WAVES}/reaction.py:Brake",
    "Transform": f"{WAVES}/data.py:Jitter",
    "WeightAdapter": f"{WAVES}/weight_adapter.py:LowRank",
    "TrainsElsewhere": "stackwise_providers_optim.schedule_free:ScheduleFreeAdamW",
    "Reaction": f"{WAVES}/reaction.py:Brake",
    "StopsRun": f"{WAVES}/reaction.py:Goal",
    "StepSchedule": f"{WAVES}/schedule.py:Swell",
    "Adapter": f"{WAVES}/model.py:Squash",
    "MeetsRun": "stackwise.builtin.tracking:Tracker",
    "LeavesRun": "stackwise.builtin.tracking:Tracker",
    "GrowthOperator": f"{WAVES}/growth.py:Repeat",
    "ParameterGrowth": f"{TRANSFORMER}.width_growth:WidthGrowth",
    "Generates": f"{TRANSFORMER}.causal_lm:CausalLM",
    "GeneratesRows": f"{TRANSFORMER}.causal_lm:CausalLM",
    "GeneratesFields": f"{WAVES}/pictures.py:Flow",
    "Scores": f"{TRANSFORMER}.causal_lm:CausalLM",
    "TextCodec": "stackwise_providers_data.text_codec:ByteCodec",
    "HasTokenizer": "stackwise_providers_data.options:TextFilesOptions",
    "Predicts": f"{WAVES}/task.py:Forecast",
    "ReadsRows": "stackwise_providers_data.table_options:TableOptions",
    "WeightFormat": f"{TRANSFORMER}.hugging_face.format:HuggingFaceFormat",
    "NotesFolders": f"{TRANSFORMER}.hugging_face.format:HuggingFaceFormat",
    "TranslatesConfigs": f"{TRANSFORMER}.predecessor.format:StackWiseFormat",
}
"""Protocol → a class that is one, in a distribution that the tests build, check and train with: a file of the repository or a module. One
that is missing here has an example in its docstring."""
WRITTEN = "<!-- written by make docs -->\n"


def pages() -> dict[str, str]:
    """File below docs → text."""
    return {
        "reference/components.md": _joined(_components()),
        "reference/command-line.md": _joined(_commands()),
        "reference/events.md": _joined(_events()),
        "reference/contracts.md": _joined(_contracts()),
        "reference/python.md": _joined(_python()),
        "decisions/README.md": decisions_index.index(),
    }


def _joined(lines: Iterable[str]) -> str:
    return WRITTEN + "\n".join(lines) + "\n"


def _printed(*arguments: str) -> str:
    wide = {"terminal_width": 100, "prog_name": "stackwise", "catch_exceptions": False}
    result = CliRunner(env={"COLUMNS": "100"}).invoke(main, list(arguments), **wide)
    assert result.exit_code == 0, result.output
    return result.stdout


def _components() -> Iterator[str]:
    yield "# Components\n"
    yield "Every component of the core and of the three providers, as `stackwise show` explains it."
    for provider in json.loads(_printed("list-providers", "--json")):
        if provider["provider"] not in OURS:
            continue
        yield f"\n## {provider['distribution']}"
        for entry in provider["components"]:
            yield from _component(next(iter(json.loads(_printed("show", f"{entry['kind']}:{entry['id']}", "--json")))))


def _component(about: Mapping[str, Any]) -> Iterator[str]:
    yield f"\n### `{about['id']}`\n"
    yield f"{about['kind'].capitalize()}: {about['summary']}. In a config it stands at `{about['stands_at']}`.\n"
    if about["options"]:
        yield "| option | type | default | meaning |"
        yield "|---|---|---|---|"
    for option in about["options"]:
        default = "required" if option["required"] else _default(option["default"])
        yield f"| `{option['key']}` | {_cell(option['type'])} | {default} | {_cell(_meaning(option))} |"
    yield f"\n```yaml\n{_example(about['example'])}\n```"


def _example(options: Mapping[str, Any]) -> str:
    """As YAML may hold it; files of the repository by their place in it, wherever this copy of it lies."""
    return json.dumps(options, ensure_ascii=False).replace(f"{DOCS.parent.as_posix()}/", "")


def _default(value: object) -> str:
    return "" if value is None else f"`{json.dumps(value, ensure_ascii=False)}`"


def _meaning(option: Mapping[str, Any]) -> str:
    words = {"minimum": "at least", "maximum": "at most", "below": "below"}
    rules = [f"{word} {option[key]}" for key, word in words.items() if key in option]
    rules += ["may follow time"] if option["may_follow_time"] else []
    return "; ".join(filter(None, (option["doc"], *rules)))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _commands() -> Iterator[str]:
    yield "# Command line\n"
    yield "What `stackwise COMMAND --help` prints."
    for name in COMMANDS:
        yield f"\n## `stackwise {name}`\n"
        yield f"```text\n{_printed(name, '--help').rstrip()}\n```"


def _events() -> Iterator[str]:
    yield "# Events\n"
    yield "What `machine.train()` yields, what observers receive, and what the lines of `events.jsonl` and `metrics.jsonl` hold."
    for name, found in vars(events).items():
        if isinstance(found, type) and issubclass(found, tuple) and found is not tuple and hasattr(found, "_fields"):
            yield f"\n## `{name}`\n"
            yield inspect.cleandoc(found.__doc__ or "")
            yield "\n| field | type | meaning |\n|---|---|---|"
            yield from (f"| `{field}` | {_cell(kind)} | {_cell(about)} |" for field, kind, about in _fields(found))


def _fields(record: type) -> Iterator[tuple[str, str, str]]:
    """(name, type, the text below it in the source) of each field of a named tuple."""
    source = Path(events.__file__).read_text(encoding="utf-8")
    body = re.search(rf"^class {record.__name__}\(.*?(?=^class |\Z)", source, re.DOTALL | re.MULTILINE)
    assert body is not None
    pattern = r'^    (\w+): ([^=\n#]+?)(?: = [^\n]*)?(?:  #[^\n]*)?\n(?:    """(.*?)"""\n)?'
    yield from re.findall(pattern, body[0], re.DOTALL | re.MULTILINE)


def _contracts() -> Iterator[str]:
    yield "# What a provider and the core ask of each other\n"
    yield "Specs, artifacts by kind, what each may offer besides, the maps of growth: each class, method and field as the source has it."
    yield "Nobody inherits from a protocol; whatever has its methods is one, as its example is. How they go together teaches"
    yield "[write a provider](../how-to/write-a-provider.md); the fields of events are on [a page of their own](events.md)."
    yield "\n## Hooks\n"
    yield "Each takes nothing and returns or yields records: `Component`, the last one `Starter`.\n"
    yield "| hook | kind | names |\n|---|---|---|"
    for hook in (*hookspecs.HOOKS, hookspecs.STARTERS):
        about = inspect.getdoc(getattr(hookspecs, hook)) or ""
        yield f"| `{hook}` | {hookspecs.HOOKS.get(hook, '')} | {_cell(about.partition(chr(10) * 2)[0])} |"
    for title, module in CONTRACTS.items():
        yield f"\n## {title}"
        for node in ast.parse(Path(module.__file__).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name in stackwise.__all__:
                yield from _class(node)


def _class(node: ast.ClassDef) -> Iterator[str]:
    """A class of the contract: what it says of itself, its fields and its methods."""
    yield f"\n### `stackwise.{node.name}`\n"
    yield _described(ast.get_docstring(node))
    if node.name in EXAMPLES:
        place, _, name = EXAMPLES[node.name].partition(":")
        yield f"\nExample: [`{name}`](../../{example_file(place)})."
    fields = list(_class_fields(node))
    if fields:
        yield "\n| field | type | default | meaning |\n|---|---|---|---|"
        yield from (f"| `{name}` | {_cell(kind)} | {_cell(default)} | {_cell(about)} |" for name, kind, default, about in fields)
    for method in (each for each in node.body if isinstance(each, ast.FunctionDef)):
        if not method.name.startswith("_") or method.name == "__call__":
            returns = ast.unparse(method.returns) if method.returns else "None"
            yield f"\n```python\n{method.name}({ast.unparse(method.args)}) -> {returns}\n```"
            if about := ast.get_docstring(method):
                yield f"\n{_described(about)}"


def example_file(place: str) -> str:
    """The file of the repository that a place in `EXAMPLES` names."""
    if place.endswith(".py"):
        return place
    folder = "stackwise-core" if place.startswith("stackwise.") else place.partition(".")[0].replace("_", "-")
    return f"{folder}/src/{place.replace('.', '/')}.py"


def _class_fields(node: ast.ClassDef) -> Iterator[tuple[str, str, str, str]]:
    """(name, type, default, the text below it) of each annotated field."""
    for i, field in enumerate(node.body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and not field.target.id.startswith("_"):
            below = node.body[i + 1] if i + 1 < len(node.body) else None
            says = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
            about = below.value.value if says else ""
            yield field.target.id, f"`{ast.unparse(field.annotation)}`", _field_default(field.value), about


def _field_default(value: ast.expr | None) -> str:
    """As the source has it; `required` where there is none."""
    if value is None:
        return "required"
    if isinstance(value, ast.Call):
        keywords = {keyword.arg: keyword.value for keyword in value.keywords}
        if "default" in keywords:
            return f"`{ast.unparse(keywords['default'])}`"
        return "empty" if "factory" in keywords or ast.unparse(value.func) == "Factory" else "required"
    return f"`{ast.unparse(value)}`"


def _python() -> Iterator[str]:
    yield "# Python\n"
    yield "Every name of `import stackwise`, for users in code and for authors of providers. All other modules are private."
    for name in sorted(set(stackwise.__all__) - {"__version__"}):
        found = getattr(stackwise, name)
        yield f"\n## `stackwise.{name}`\n"
        if signature := _signature(found):
            yield f"```python\n{name}{signature}\n```\n"
        yield _described(found.__doc__) if _is_own(found) else _other(found)


def _other(found: object) -> str:
    """A name that is neither a class nor a function."""
    return f"An object: {type(found).__name__}." if " at 0x" in repr(found) else f"Another name of `{_short(found)}`."


def _is_own(found: object) -> bool:
    return inspect.isroutine(found) or inspect.isclass(found)


def _short(annotation: object) -> str:
    return re.sub(r"(?:\b[A-Za-z_]\w*\.)+(?=[A-Za-z_])", "", str(annotation))


def _signature(found: Any) -> str:
    """Arguments with their types; of a protocol none."""
    if getattr(found, "_is_protocol", False) or not _is_own(found):
        return ""
    try:
        text = str(inspect.signature(found))
    except (TypeError, ValueError):
        return ""
    text = _short(text.replace("'", ""))
    if len(text) < 100:
        return text
    end = text.rindex(")")
    return "(\n    " + ",\n    ".join(_split(text[1:end])) + ",\n" + text[end:]


def _split(arguments: str) -> list[str]:
    """At the commas that stand in no bracket."""
    parts, depth = [""], 0
    for character in arguments:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _described(text: str | None) -> str:
    """A docstring; its arguments and errors as lists."""
    lines, code = [], False
    for line in inspect.cleandoc(text or "").splitlines():
        code ^= line.startswith("```")
        if code or line.startswith("```"):
            lines.append(line)
        elif entry := re.match(r"    (\w+): (.*)", line):
            lines.append(f"- `{entry[1]}`: {entry[2]}")
        elif re.fullmatch(r"(Args|Raises|Returns|Yields):", line):
            lines += [f"**{line.rstrip(':')}**", ""]
        else:
            lines.append(re.sub(r"^    +", "  ", line))
    return "\n".join(lines)


def stale() -> list[str]:
    """Pages that are missing or differ from what the code gives."""
    return [name for name, text in pages().items() if not (page := DOCS / name).exists() or page.read_text(encoding="utf-8") != text]


def write() -> None:
    """Write every page."""
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
