"""Transforms of a batch between loader and task; each draws from the generator that it is given alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from stackwise import BatchSpec, BuildContext, DataError, Moment, UserError
from stackwise_providers_data.transform_options import FeatureNoiseOptions, TokenNoiseOptions, TruncateOptions

Batch = Mapping[str, torch.Tensor]


class TokenNoise:
    """Replaces each entry of a field, with probability `rate`, by an id drawn uniformly below `vocab`, which may be the same.

    Args:
        options: field and rate.
        vocab: ids are drawn below it.
    """

    def __init__(self, options: TokenNoiseOptions, vocab: int) -> None:
        self.rate, self._field, self._vocab = options.rate, options.field, vocab

    def apply_values(self, values: Mapping[str, float]) -> None:
        """Set the rate."""
        self.rate = values.get("rate", self.rate)

    def __call__(self, batch: Batch, moment: Moment, generator: torch.Generator) -> Batch:
        """The batch with noise in one field.

        Raises:
            DataError: the field is missing, or holds no integers.
        """
        entries = _field(batch, self._field, "token-noise", floating=False)
        noise = torch.randint(self._vocab, entries.shape, generator=generator, dtype=torch.int64)
        hit = torch.rand(entries.shape, generator=generator) < self.rate
        return {**batch, self._field: torch.where(hit, noise.to(entries.dtype), entries)}


class Truncate:
    """Cuts the mask of each row to the first `keep` share of its entries: ceil(keep × entries), at least one.

    Args:
        options: share, field and mask.
    """

    def __init__(self, options: TruncateOptions) -> None:
        self.keep, self._field, self._mask = options.keep, options.field, options.mask

    def apply_values(self, values: Mapping[str, float]) -> None:
        """Set the share that is kept."""
        self.keep = values.get("keep", self.keep)

    def __call__(self, batch: Batch, moment: Moment, generator: torch.Generator) -> Batch:
        """The batch with less of its mask set; one without a mask gets one.

        Raises:
            DataError: neither a mask nor the field, or one that is not [batch, time].
        """
        mask = batch.get(self._mask)
        if mask is None:
            mask = torch.ones_like(_named(batch, self._field, "truncate")[..., :], dtype=torch.bool)
        if mask.dim() != 2 or mask.dtype != torch.bool:
            raise DataError(f"truncate: '{self._mask}' is {mask.dtype}{list(mask.shape)}: a mask is bool [batch, time]")
        counts = torch.ceil(mask.sum(1).double() * self.keep - 1e-9).clamp(min=1)
        return {**batch, self._mask: mask & (mask.cumsum(1) <= counts[:, None])}


class FeatureNoise:
    """Adds independent Gaussian noise of standard deviation `std` to every number of a field.

    Args:
        options: field and deviation.
    """

    def __init__(self, options: FeatureNoiseOptions) -> None:
        self.std, self._field = options.std, options.field

    def apply_values(self, values: Mapping[str, float]) -> None:
        """Set the standard deviation."""
        self.std = values.get("std", self.std)

    def __call__(self, batch: Batch, moment: Moment, generator: torch.Generator) -> Batch:
        """The batch with noise in one field.

        Raises:
            DataError: the field is missing, or holds no floating numbers.
        """
        entries = _field(batch, self._field, "feature-noise", floating=True)
        noise = torch.empty(entries.shape).normal_(generator=generator)
        return {**batch, self._field: entries + noise.to(entries.dtype) * self.std}


def build_token_noise(options: TokenNoiseOptions, context: BuildContext) -> TokenNoise:
    """The factory of `token-noise`.

    Raises:
        UserError: no vocabulary is given, and the source declares no bound of the field.
    """
    vocab, spec = options.vocab, context.specs.get("batch")
    if vocab is None and isinstance(spec, BatchSpec) and options.field in spec.fields:
        bounds = spec.fields[options.field].bounds
        vocab = bounds[1] if bounds is not None and isinstance(bounds[1], int) else None
    if vocab is None:
        raise UserError(f"vocab: no source says how many ids '{options.field}' has: give vocab to token-noise")
    return TokenNoise(options, vocab)


def build_truncate(options: TruncateOptions, context: BuildContext) -> Truncate:
    """The factory of `truncate`."""
    return Truncate(options)


def build_feature_noise(options: FeatureNoiseOptions, context: BuildContext) -> FeatureNoise:
    """The factory of `feature-noise`."""
    return FeatureNoise(options)


def _named(batch: Batch, field: str, transform: str) -> torch.Tensor:
    if field not in batch:
        raise DataError(f"{transform}: the batch has no field '{field}' but {', '.join(batch)}: name one of them under `field`")
    return batch[field]


def _field(batch: Batch, field: str, transform: str, *, floating: bool) -> torch.Tensor:
    entries = _named(batch, field, transform)
    if entries.is_floating_point() != floating or entries.dtype == torch.bool:
        wanted = "floating" if floating else "whole"
        raise DataError(f"{transform}: '{field}' holds {entries.dtype}: name a field of {wanted} numbers under `field`")
    return entries
