"""Loaders that read in processes of their own."""
