"""Writes a complete provider to start from: a distribution with one component that installs, lists, checks and trains as it is."""

from stackwise.scaffold.blueprints import Blueprint, read_blueprint
from stackwise.scaffold.writing import Names, files_of, write

__all__ = ["Blueprint", "Names", "files_of", "read_blueprint", "write"]
