"""The page of a run: one file, without a network."""
