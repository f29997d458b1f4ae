"""The data plane: which rows of which source make each batch."""
