"""What reading a folder takes of memory: the model once, and no more than its largest tensor beside it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers as hf

from stackwise import BuildContext, Model
from stackwise_providers_transformer.decoder import Decoder
from stackwise_providers_transformer.embedding import TokenEmbedding
from stackwise_providers_transformer.format_options import HuggingFaceOptions
from stackwise_providers_transformer.head import LMHead
from stackwise_providers_transformer.hugging_face.format import build_hugging_face
from stackwise_providers_transformer.options import DecoderOptions, LMOptions, TokenOptions

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "pretrained.py"


def make_llama(folder: Path) -> None:
    width = 512
    rack = Decoder(DecoderOptions(width=width, heads=8, ff=4 * width, stacks=[{"base": 4}]))
    model = Model(TokenEmbedding(TokenOptions(vocab=8000, width=width)), rack, LMHead(LMOptions(vocab=8000, width=width)))
    model.wire()
    build_hugging_face(HuggingFaceOptions(file_bytes=20_000_000), BuildContext(seed=0)).write(model, folder, None, {})


def make_mixtral(folder: Path) -> None:
    """Its experts stand one by one in the folder, and in the model as one tensor of a block."""
    sizes = {"hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 8, "intermediate_size": 1024, "num_hidden_layers": 3}
    config = hf.MixtralConfig(vocab_size=4000, num_local_experts=10, **sizes)
    hf.MixtralForCausalLM(config).save_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "make"),
    [("ours", make_llama), *(pytest.param("wrapped", make, marks=pytest.mark.rare) for make in (make_llama, make_mixtral))],
)
def test_one_tensor_is_held_beside_the_model(case: str, make: Callable[[Path], None], tmp_path: Path) -> None:
    """The largest resident memory is counted, in which pages of mapped files are; transformers computes the model behind the first case."""
    make(tmp_path)
    child = [sys.executable, str(BENCHMARK), "--child", case, str(tmp_path)]
    found = json.loads(subprocess.run(child, capture_output=True, text=True, check=True).stdout)
    assert found["model"] > 4 * found["largest"] > 50 * 2**20  # a second model would show
    assert found["more"] <= found["largest"] + 4 * 2**20
