"""What this distribution offers."""

from __future__ import annotations

from pathlib import Path

from stackwise import Component, hookimpl

_PACKAGE = "stackwise_providers_data"
_SAMPLES = Path(__file__).with_name("samples")


@hookimpl
def stackwise_loaders() -> list[Component]:
    """Text and records from files, arrays from files or memory."""
    return [
        Component(
            name="python-stdlib",
            options=f"{_PACKAGE}.options:StdlibOptions",
            factory=f"{_PACKAGE}.text_files:build_python_stdlib",
            summary="the standard library's own sources, read where they lie",
        ),
        Component(
            name="text-files",
            options=f"{_PACKAGE}.options:TextFilesOptions",
            factory=f"{_PACKAGE}.text_files:build_text_files",
            summary="text files found by globs",
            example={"paths": [str(Path(__file__).with_name("*.py"))], "heldout": 0.4},
        ),
        Component(
            name="jsonl",
            options=f"{_PACKAGE}.record_options:JsonlOptions",
            factory=f"{_PACKAGE}.record_files:build_records",
            summary="lines of JSON: text, labelled text or features, prompts with responses, responses to compare",
            example={"paths": [str(_SAMPLES / "proverbs.jsonl")], "text": "text", "heldout": 0.4},
        ),
        Component(
            name="hf-dataset",
            options=f"{_PACKAGE}.record_options:HfDatasetOptions",
            factory=f"{_PACKAGE}.record_files:build_records",
            summary="rows of a Hugging Face dataset that save_to_disk wrote; the same examples as jsonl",
            example={"path": str(_SAMPLES / "proverbs"), "text": "text", "heldout": 0.4},
        ),
        Component(
            name="parquet",
            options=f"{_PACKAGE}.table_options:ParquetOptions",
            factory=f"{_PACKAGE}.table_files:build_table",
            summary="rows of Parquet files: the examples of jsonl, or columns of numbers and categories",
            example={"paths": [str(_SAMPLES / "proverbs.parquet")], "text": "text", "heldout": 0.4},
        ),
        Component(
            name="csv",
            options=f"{_PACKAGE}.table_options:CsvOptions",
            factory=f"{_PACKAGE}.table_files:build_table",
            summary="rows of CSV files: text and labels, or columns of numbers and categories",
            example={"paths": [str(_SAMPLES / "proverbs.csv")], "text": "text", "heldout": 0.4},
        ),
        Component(
            name="array-files",
            options=f"{_PACKAGE}.array_options:ArrayFilesOptions",
            factory=f"{_PACKAGE}.array_files:build_array_files",
            summary="arrays in npy, npz or safetensors files: one stream of token ids, or rows of several fields",
            example={"files": {"tokens": str(_SAMPLES / "tokens.npy")}, "vocab": 16, "heldout": 0.25},
        ),
        Component(
            name="memory",
            options=f"{_PACKAGE}.memory_options:MemoryOptions",
            factory=f"{_PACKAGE}.memory:build_memory",
            summary="arrays in memory: one stream of token ids, or rows of several fields",
            example={"arrays": {"tokens": [0, 1, 2, 3] * 128}, "vocab": 4, "heldout": 0.25},
        ),
    ]


@hookimpl
def stackwise_transforms() -> list[Component]:
    """Three transforms whose strength may follow time."""
    return [
        Component(
            name="token-noise",
            options=f"{_PACKAGE}.transform_options:TokenNoiseOptions",
            factory=f"{_PACKAGE}.transforms:build_token_noise",
            summary="entries replaced by random ids, at a rate that may follow time",
            example={"rate": 0.1, "vocab": 16},
        ),
        Component(
            name="truncate",
            options=f"{_PACKAGE}.transform_options:TruncateOptions",
            factory=f"{_PACKAGE}.transforms:build_truncate",
            summary="rows shortened through their mask, to a share that may follow time",
            example={"keep": 0.5},
        ),
        Component(
            name="feature-noise",
            options=f"{_PACKAGE}.transform_options:FeatureNoiseOptions",
            factory=f"{_PACKAGE}.transforms:build_feature_noise",
            summary="Gaussian noise on numbers, of a deviation that may follow time",
            example={"std": 0.1},
        ),
    ]
