"""Folders that transformers reads and writes: `config.json` beside safetensors. No file here imports transformers."""
