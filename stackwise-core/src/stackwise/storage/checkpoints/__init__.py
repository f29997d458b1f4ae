"""Checkpoints on disk: safetensors and JSON, all or nothing, valid only when the digests match. Knows nothing of runs."""
