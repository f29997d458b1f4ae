"""Write the chat and the preferences of `five-stages.yaml` to `chat.jsonl` and `answers.jsonl`: questions about the standard library.

The user gives the name of a function and its parameters, the assistant answers with the first line of its docstring; the rejected answer
is that line broken off.

python examples/prepare_five_stages.py
"""

from __future__ import annotations

import ast
import json
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path


def questions() -> Iterator[tuple[str, str]]:
    """The signature of each documented function, and what it does in one line."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and (text := ast.get_docstring(node)):
                question = f"{path.stem}.{node.name}({', '.join(argument.arg for argument in node.args.args)})"
                if len(question) + len(line := text.splitlines()[0]) < 100 and line:
                    yield question, line


draw = random.Random(0)
pairs = sorted(set(questions()))
draw.shuffle(pairs)
with Path("chat.jsonl").open("w", encoding="utf-8") as file:
    for question, answer in pairs:
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        file.write(json.dumps({"messages": turns}) + "\n")
with Path("answers.jsonl").open("w", encoding="utf-8") as file:
    for question, answer in pairs:
        prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        if len(words := answer.split()) > 2:
            broken = " ".join(words[: draw.randrange(1, len(words))])
            file.write(json.dumps({"prompt": prompt, "chosen": f"{answer}<|im_end|>", "rejected": f"{broken}<|im_end|>"}) + "\n")
