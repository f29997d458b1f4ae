"""Writes a complete provider to start from: a distribution with one component that installs, lists, checks and trains as it is."""

from stackwise.scaffold.blueprints import BLUEPRINTS, Blueprint
from stackwise.scaffold.writing import Names, files_of, write

__all__ = ["BLUEPRINTS", "Blueprint", "Names", "files_of", "write"]
