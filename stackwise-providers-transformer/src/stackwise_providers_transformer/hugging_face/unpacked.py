"""Documents of packed rows, each in a row of its own: for a model whose attention knows of none.

Shapes: B batch, T time, X = B · T entries of all rows, G documents, L the length of the longest of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import frozen

from stackwise import UserError
from stackwise_providers_transformer.packed import in_one_piece, pieces

SHARE = 0.75
"""Documents stand together while the shortest has this share of the longest's length: fewer calls for some padding."""


@frozen(eq=False)
class Unpacked:
    """Where the documents of a batch lie."""

    groups: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    """The entries [G, L] of documents of about one length, after the end of each its last one again, and whether each is real."""
    places_X: torch.Tensor
    """Where each entry of the rows stands among the real ones of all groups."""

    def together(self, groups: Sequence[torch.Tensor], rows_BTD: torch.Tensor) -> torch.Tensor:
        """What was made of every group [G, L, D], in the rows that it came from."""
        real_XD = torch.cat([made[real] for made, (_, real) in zip(groups, self.groups, strict=True)])
        return real_XD.index_select(0, self.places_X).view(*rows_BTD.shape[:2], -1)


def unpack(parts_BT: Sequence[torch.Tensor], *, padded: bool) -> Unpacked:
    """The documents of a batch.

    Args:
        parts_BT: integers or bools; entries of a row that agree in all of them are of one document.
        padded: whether padding after a document changes nothing of it; if not, documents of one length alone stand together.

    Raises:
        UserError: a document in two pieces.
    """
    starts, lengths = pieces(parts_BT)
    if not in_one_piece(starts, parts_BT):
        raise UserError("segments: a document stands in a row in two pieces, which rack transformer.hf does not bring together")
    begins, sizes = starts.tolist(), lengths.tolist()
    together: list[list[int]] = []
    for document in sorted(range(len(sizes)), key=lambda each: -sizes[each]):
        longest = sizes[together[-1][0]] if together else 0
        fits = sizes[document] >= (SHARE * longest if padded else longest)
        together[-1].append(document) if together and fits else together.append([document])
    groups = []
    for documents in together:
        place_L = torch.arange(sizes[documents[0]], device=starts.device)
        first_G1 = torch.tensor([[begins[each]] for each in documents], device=starts.device)
        length_G1 = torch.tensor([[sizes[each]] for each in documents], device=starts.device)
        groups.append((first_G1 + torch.minimum(place_L, length_G1 - 1), place_L < length_G1))
    entry_X = torch.cat([entries[real] for entries, real in groups])
    return Unpacked(tuple(groups), entry_X.argsort())
