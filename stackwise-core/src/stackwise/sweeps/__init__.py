"""Sweeps: many runs of one config, their shared steps trained once."""
