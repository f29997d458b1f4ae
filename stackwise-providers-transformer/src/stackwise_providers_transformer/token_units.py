"""What one token stands for, as the loader says it, and the metric that follows."""

from __future__ import annotations

from math import log

from stackwise import BatchSpec, BuildContext, UnitMetric

BITS_PER_NAT = 1 / log(2)


def token_unit(context: BuildContext, field: str = "tokens") -> str | None:
    """The unit of the field's entries; None where no loader says one."""
    spec = context.specs.get("batch")
    tokens = spec.fields.get(field) if isinstance(spec, BatchSpec) else None
    return tokens.unit if tokens is not None else None


def bits_of(field: str = "tokens") -> UnitMetric:
    """`bits_per_byte` where an entry of the field is a byte, else `bits_per_token`."""
    return UnitMetric(field, {"byte": "bits_per_byte"}, "bits_per_token")
