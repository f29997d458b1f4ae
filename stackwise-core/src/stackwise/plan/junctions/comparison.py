"""Two tensor specs compared: which dimensions line up, which dtypes widen without loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from stackwise.contracts.specs import (
    RUNTIME_DIMS,
    AdapterSpec,
    BatchSpec,
    Dim,
    EmbeddingSpec,
    HeadSpec,
    RackSpec,
    Spec,
    TaskSpec,
    TensorSpec,
)

_WIDER: Mapping[str, tuple[str, ...]] = {
    "bool": ("uint8", "int8"),
    "uint8": ("uint16", "int16"),
    "int8": ("int16",),
    "uint16": ("uint32", "int32"),
    "int16": ("int32",),
    "uint32": ("int64",),
    "int32": ("int64",),
    "integer": ("int64",),
    "bfloat16": ("float32",),
    "float16": ("float32",),
    "float32": ("float64",),
    "floating": ("float64",),
}


def pair_dims(delivered: tuple[Dim, ...], needed: tuple[Dim, ...], *, reorder: bool) -> list[tuple[Dim, Dim]] | None:
    """Pairs of dimensions that are one: by position, or with `reorder` by name where only the order differs; None: no fit."""
    if reorder and {*delivered} == {*needed} and len({*delivered}) == len(delivered) == len(needed):
        return [(dim, dim) for dim in needed]
    return list(zip(delivered, needed, strict=True)) if _same_frame(delivered, needed) else None


def _same_frame(delivered: tuple[Dim, ...], needed: tuple[Dim, ...]) -> bool:
    """Whether the ranks agree and runtime dimensions meet only themselves."""
    runtime = [[dim if dim in RUNTIME_DIMS else None for dim in dims] for dims in (delivered, needed)]
    return runtime[0] == runtime[1]


def fits(delivered: TensorSpec, needed: TensorSpec) -> bool:
    """Whether a delivered field could be a needed one: rank, runtime dimensions, fixed sizes and kind of dtype."""
    sizes = zip(delivered.dims, needed.dims, strict=False)
    clash = any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in sizes)
    return _same_frame(delivered.dims, needed.dims) and not clash and kind_of(delivered.dtype) == kind_of(needed.dtype)


def kind_of(dtype: str) -> str:
    """`floating`, `integer`, `bool` or the complex dtype itself."""
    if dtype in ("floating", "integer", "bool") or dtype.startswith("complex"):
        return dtype
    return "floating" if "float" in dtype else "integer"


def widenings(dtype: str) -> set[str]:
    """Every dtype that holds all values of `dtype`."""
    wider = set(_WIDER.get(dtype, ()))
    return wider.union(*(widenings(other) for other in wider))


def named_dims(spec: Spec) -> Iterator[str]:
    """The dimensions of a spec that have one size for the whole run."""
    for tensor in _tensors(spec):
        for dim in (*tensor.dims, *(tensor.bounds or ())):
            if isinstance(dim, str) and dim not in RUNTIME_DIMS:
                yield dim


def _tensors(spec: Spec) -> tuple[TensorSpec, ...]:
    match spec:
        case BatchSpec():
            return (*spec.fields.values(),)
        case EmbeddingSpec():
            return (*spec.inputs.values(), spec.output)
        case RackSpec():
            return (spec.input, spec.output, *spec.side.values())
        case HeadSpec():
            return (spec.input, *spec.outputs.values(), *spec.side.values())
        case TaskSpec():
            return (*spec.batch.values(), *spec.optional.values(), *spec.inputs.values(), *spec.outputs.values())
        case AdapterSpec():
            return (spec.input, spec.output)
        case _:
            return ()
