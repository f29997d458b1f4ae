"""The optimizer plane: what learns, and what becomes of moments."""
