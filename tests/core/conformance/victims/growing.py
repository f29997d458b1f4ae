"""Growth operators, sound and broken. Nothing here imports torch."""

from __future__ import annotations

import random
from typing import Any

from stackwise import BlockOrigin, CopyOf, GrowthRequest

Map = dict[tuple[str, int], BlockOrigin]


class Append:
    """New blocks stand on top of their stack and start as the identity."""

    preserves_function = True

    def map_blocks(self, request: GrowthRequest) -> Map:
        origins = {}
        for stack, blocks in request.new_stacks.items():
            old = request.old_stacks.get(stack, 0)
            if blocks < old:
                raise ValueError(f"stack '{stack}' loses blocks: this operator only adds")
            for i in range(blocks):
                origins[stack, i] = BlockOrigin(source=(stack, i)) if i < old else BlockOrigin(source=None, zero_residual=True)
        return origins


class Short(Append):
    """Forgets the last block of a stack of odd depth."""

    preserves_function = False

    def map_blocks(self, request: GrowthRequest) -> Map:
        last = {(stack, blocks - 1) for stack, blocks in request.new_stacks.items() if blocks % 2 and blocks > 1}
        return {block: origin for block, origin in super().map_blocks(request).items() if block not in last}


class Moody(Append):
    """Lets new blocks start as the identity, or not, as it pleases."""

    preserves_function = False

    def map_blocks(self, request: GrowthRequest) -> Map:
        chance = random.SystemRandom()
        return {
            b: o if o.source else BlockOrigin(source=None, zero_residual=chance.random() < 0.5)
            for b, o in super().map_blocks(request).items()
        }


class Abrupt(Append):
    """Divides by the old depth."""

    def map_blocks(self, request: GrowthRequest) -> Map:
        _ = [blocks / request.old_stacks.get("base", 0) for blocks in request.new_stacks.values()]
        return super().map_blocks(request)


class Liar(Append):
    """Copies where it promises the identity."""

    def map_blocks(self, request: GrowthRequest) -> Map:
        return {b: o if o.source else BlockOrigin(source=("base", 0)) for b, o in super().map_blocks(request).items()}


class Doubled(Append):
    """Repeats every axis that grows, and what is read twice counts twice: the function is another."""

    def map_parameters(self, old: Any, new: Any, request: GrowthRequest) -> dict[str, CopyOf]:
        origins = {}
        for name in (name for name in new if name in old and old[name] != new[name]):
            sizes = list(zip(old[name], new[name], strict=True))
            origins[name] = CopyOf(source=name, index={d: tuple(i % a for i in range(b)) for d, (a, b) in enumerate(sizes) if a != b})
        return origins


class Lopsided(Doubled):
    """Gives a factor for every old position, not for every new one."""

    preserves_function = False

    def map_parameters(self, old: Any, new: Any, request: GrowthRequest) -> dict[str, CopyOf]:
        mapped = super().map_parameters(old, new, request)
        return {n: CopyOf(source=n, index=o.index, factors={d: (1.0,) * old[n][d] for d in o.index}) for n, o in mapped.items()}


class Understated(Append):
    """Repeats what is written and shares out what is read: the function stays, and gradients are not what the map says of them."""

    def map_parameters(self, old: Any, new: Any, request: GrowthRequest) -> dict[str, CopyOf]:
        origins = {}
        for name in (name for name in new if name in old and old[name] != new[name]):
            grown = {d: (a, b) for d, (a, b) in enumerate(zip(old[name], new[name], strict=True)) if a != b}
            index = {d: tuple(i % a for i in range(b)) for d, (a, b) in grown.items()}
            read = {d: (a / b,) * b for d, (a, b) in grown.items() if d == 1}
            origins[name] = CopyOf(source=name, index=index, factors=read)
        return origins


class WrongWhenDeep(Append):
    """Lets the new blocks of a deep stack stand at its bottom, and says that the function stays."""

    def map_blocks(self, request: GrowthRequest) -> Map:
        origins = super().map_blocks(request)
        for stack, blocks in request.new_stacks.items():
            if request.old_stacks.get(stack, 0) >= 5:
                origins |= {(stack, i): BlockOrigin(source=(stack, max(i - 1, 0))) for i in range(blocks) if i <= request.old_stacks[stack]}
        return origins


class FirstOnly(Doubled):
    """Every new position of an axis that grows is a copy of the first."""

    preserves_function = False

    def map_parameters(self, old: Any, new: Any, request: GrowthRequest) -> dict[str, CopyOf]:
        mapped = super().map_parameters(old, new, request)
        return {n: CopyOf(source=n, index={d: (0,) * len(i) for d, i in o.index.items()}) for n, o in mapped.items()}


class ByWidth(Append):
    """Right: looks at the options before and after, as an operator of one rack may."""

    def map_blocks(self, request: GrowthRequest) -> Map:
        if request.old_options["rack"]["width"] != request.new_options["rack"]["width"]:
            raise ValueError("the width changes: this operator only adds blocks")
        return super().map_blocks(request)


def build_understated(options: Any, context: Any) -> Append:
    return Understated()


def build_doubled(options: Any, context: Any) -> Append:
    return Doubled()


def build_lopsided(options: Any, context: Any) -> Append:
    return Lopsided()


def build(options: Any, context: Any) -> Append:
    return Append()


def build_short(options: Any, context: Any) -> Append:
    return Short()


def build_moody(options: Any, context: Any) -> Append:
    return Moody()


def build_abrupt(options: Any, context: Any) -> Append:
    return Abrupt()


def build_liar(options: Any, context: Any) -> Append:
    return Liar()


def build_wrong_when_deep(options: Any, context: Any) -> Append:
    return WrongWhenDeep()


def build_first_only(options: Any, context: Any) -> Append:
    return FirstOnly()


def build_by_width(options: Any, context: Any) -> Append:
    return ByWidth()
