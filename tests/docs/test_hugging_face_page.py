"""`docs/how-to/hugging-face.md`: its commands run in this order, in one process without transformers; its table is that of the format."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import torch

from stackwise import BuildContext, Model
from stackwise_providers_transformer.decoder import Decoder
from stackwise_providers_transformer.embedding import TokenEmbedding
from stackwise_providers_transformer.format_options import HuggingFaceOptions
from stackwise_providers_transformer.head import LMHead
from stackwise_providers_transformer.hugging_face.families import FAMILIES
from stackwise_providers_transformer.hugging_face.format import build_hugging_face
from stackwise_providers_transformer.options import DecoderOptions, LMOptions, TokenOptions

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "hugging-face.md").read_text(encoding="utf-8")
CONFIG = re.findall(r"^```yaml title=(\S+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = re.findall(r"^```console\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)[0].splitlines()
"""Those behind, of the library of tasks, are called by tests/core/saved/test_harness.py."""
CHILD = """
import sys
from pathlib import Path
import numpy
from stackwise.cli import main
numpy.save("tokens.npy", numpy.arange(4000) % 64)
for line in sys.argv[1:]:
    main(line.split()[1:], standalone_mode=False)
assert not {name.partition(".")[0] for name in sys.modules} & {"transformers", "huggingface_hub", "tokenizers"}
"""


def write_folder(folder: Path) -> Model:
    """A small Llama, whose parameters are all drawn."""
    folder.mkdir()
    rack = DecoderOptions(width=16, heads=2, kv_heads=1, ff=24, stacks=[{"base": 2}])
    model = Model(TokenEmbedding(TokenOptions(vocab=64, width=16)), Decoder(rack), LMHead(LMOptions(vocab=64, width=16)))
    model.wire()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.5, 0.3)
    build_hugging_face(HuggingFaceOptions(), BuildContext(seed=0)).write(model, folder, None, {})
    return model


def test_the_commands_run_in_a_process_without_transformers(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder")
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    (tmp_path / "folder" / "config.json").write_text(json.dumps({**config, "bos_token_id": 7}))
    for name, text in CONFIG:
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert len(COMMANDS) == 3
    done = subprocess.run([sys.executable, "-c", CHILD, *COMMANDS], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    after = json.loads((tmp_path / "trained" / "config.json").read_text())
    assert after == {**config, "bos_token_id": 7}


def test_the_table_names_every_family() -> None:
    assert set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`\w+`.*?) \|", PAGE, re.MULTILINE)))) == set(FAMILIES)
