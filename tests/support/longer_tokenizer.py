"""A pretrained folder of 64 ids with its tokenizer, a longer tokenizer file, and text in its words."""

from __future__ import annotations

from pathlib import Path

from grown_models import language_model
from tokenizers import Tokenizer, models, pre_tokenizers

from stackwise import BuildContext
from stackwise_providers_transformer.format_options import HuggingFaceOptions
from stackwise_providers_transformer.hugging_face.format import build_hugging_face


def write_longer(place: Path) -> None:
    """`folder`, `longer.json` of 68 ids, and `words.txt`."""
    (place / "folder").mkdir()
    build_hugging_face(HuggingFaceOptions(), BuildContext(seed=0)).write(language_model(vocab=64), place / "folder", None, {})
    words = [f"w{i}" for i in range(67)]
    for file, count in (("folder/tokenizer.json", 63), ("longer.json", 67)):
        made = Tokenizer(models.WordLevel({"?": 0} | {word: i + 1 for i, word in enumerate(words[:count])}, unk_token="?"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        made.save(str(place / file))
    (place / "words.txt").write_text(" ".join(words * 60), encoding="utf-8")
