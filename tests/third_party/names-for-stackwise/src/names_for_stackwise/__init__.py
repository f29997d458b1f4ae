"""Kinds of Unicode characters by their names."""
