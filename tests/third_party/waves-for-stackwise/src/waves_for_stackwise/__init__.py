"""Waves for StackWise: one component of every kind, none of them a transformer."""
