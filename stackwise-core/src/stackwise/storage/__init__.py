"""Everything that touches files: run directories, checkpoints, weights, locks."""
