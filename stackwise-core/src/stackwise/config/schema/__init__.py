"""The JSON Schema (Draft 2020-12) of configs, drawn from the classes that read them and the options of every installed component."""

from stackwise.config.schema.document import config_schema

__all__ = ["config_schema"]
