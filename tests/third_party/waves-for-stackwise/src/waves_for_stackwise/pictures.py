"""Pictures that are made of noise: flow matching, and the parts of its model.

Shapes: B batch, H height, W width, C channels, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from attrs import frozen
from torch import Generator, Tensor, nn

from stackwise import BuildContext, EmbeddingSpec, HeadSpec, Moment, TaskSpec
from waves_for_stackwise.options import FlowOptions, PictureInOptions, PictureOutOptions

Model = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


@frozen
class Flow:
    """The squared error of the velocity that leads from noise to a picture (flow matching, arXiv 2210.02747, equation 23 with σ = 0)."""

    options: FlowOptions

    def get_spec(self) -> TaskSpec:
        """As the options say."""
        return self.options.to_spec()

    def prepare(self, batch: Mapping[str, Tensor], moment: Moment, generator: Generator) -> dict[str, Tensor]:
        """Each picture somewhere on its way: image = (1 - t) noise + t picture, at an instant t of its own in [0, 1)."""
        picture = batch["image"].float()
        noise = torch.randn(picture.shape, generator=generator).to(picture.device)
        instant = torch.rand(len(picture), generator=generator).to(picture.device)
        share = instant[:, None, None, None]
        return {"image": (1 - share) * noise + share * picture, "instant": instant, "velocity": picture - noise}

    def loss(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, int, dict[str, tuple[Tensor, int]]]:
        """The sum over pixels, and their number."""
        error = outputs["velocity"].float() - batch["velocity"]
        return error.square().sum(), error.numel(), {}

    def generate_fields(self, model: Model, count: int, generator: Generator) -> dict[str, Tensor]:
        """New pictures [count, H, W, C]: noise that follows the velocity in steps of equal length (Euler)."""
        shape = (count, self.options.height, self.options.width, self.options.channels)
        image = torch.randn(shape, generator=generator)
        for step in range(self.options.steps):
            instant = torch.full((count,), step / self.options.steps)
            image = image + model({"image": image, "instant": instant})["velocity"].float() / self.options.steps
        return {"image": image}


class PictureIn(nn.Module):
    """A picture and its instant as one position."""

    def __init__(self, options: PictureInOptions) -> None:
        super().__init__()
        self.options = options
        self.linear = nn.Linear(options.height * options.width * options.channels + 8, options.features)

    def get_spec(self) -> EmbeddingSpec:
        """As the options say."""
        return self.options.to_spec()

    def forward(self, image: Tensor, instant: Tensor) -> Tensor:
        """[B, H, W, C] and [B] → [B, 1, D]."""
        angles = instant[:, None] * torch.pi * 2.0 ** torch.arange(4, device=instant.device)
        hidden: Tensor = self.linear(torch.cat((image.flatten(1), angles.sin(), angles.cos()), 1))
        return hidden[:, None]


class PictureOut(nn.Module):
    """A velocity for every pixel."""

    def __init__(self, options: PictureOutOptions) -> None:
        super().__init__()
        self.options = options
        self.linear = nn.Linear(options.features, options.height * options.width * options.channels)

    def get_spec(self) -> HeadSpec:
        """As the options say."""
        return self.options.to_spec()

    def forward(self, hidden: Tensor) -> dict[str, Tensor]:
        """[B, 1, D] → velocity [B, H, W, C]."""
        flat = self.linear(hidden.mean(1))
        return {"velocity": flat.view(len(flat), self.options.height, self.options.width, self.options.channels)}


def build_flow(options: FlowOptions, context: BuildContext) -> Flow:
    """The factory of task `waves.flow`."""
    return Flow(options)


def build_picture_in(options: PictureInOptions, context: BuildContext) -> PictureIn:
    """The factory of embedding `waves.picture`."""
    return PictureIn(options)


def build_picture_out(options: PictureOutOptions, context: BuildContext) -> PictureOut:
    """The factory of head `waves.picture`."""
    return PictureOut(options)
