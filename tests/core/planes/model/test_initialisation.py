"""Deferred initialisation: what a constructor reads it reads rightly, and a draw depends on nothing but the name it is for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from stackwise.planes.model.initialisation import DeferredInitialisation


def seed_of(name: str) -> int:
    return sum(map(ord, name))


def built(make: Callable[[], nn.Module], force: int = 0) -> nn.Module:
    """A module as the model plane makes it; `force` seeds the generator in force while it is constructed."""
    torch.full((5000,), float("nan"))  # memory that is handed out again holds no zeros
    torch.manual_seed(force)
    with DeferredInitialisation() as draws:
        module = make()
    draws.make_others([*module.parameters(), *module.buffers()], lambda number: 1000 + number)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        draws.make(tensor.data, seed_of(name))
    return module


def test_a_draw_is_the_call_itself_from_the_stream_of_its_name() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.normal = nn.Parameter(torch.empty(7, 3))
            nn.init.normal_(self.normal, mean=1.0, std=0.3)
            self.uniform = nn.Parameter(torch.empty(7, 3))
            nn.init.uniform_(self.uniform, -2.0, 1.0)
            self.chain = nn.Parameter(torch.empty(40).normal_().clamp_(-1, 1).mul_(3))
            self.overwritten = nn.Parameter(torch.empty(4).normal_().uniform_().fill_(2.5))
            self.randn = nn.Parameter(torch.randn(5, 2))
            self.rand = nn.Parameter(torch.rand(5, 2, dtype=torch.float64))
            self.linear = nn.Linear(3, 2)

    def expected(name: str, tensor: torch.Tensor, *calls: Callable[[torch.Tensor, torch.Generator], object]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed_of(name))
        for call in calls:
            call(tensor, generator)
        return tensor

    bound = 3**-0.5
    right = {
        "normal": expected("normal", torch.empty(7, 3), lambda t, g: t.normal_(1.0, 0.3, generator=g)),
        "uniform": expected("uniform", torch.empty(7, 3), lambda t, g: t.uniform_(-2.0, 1.0, generator=g)),
        "chain": expected("chain", torch.empty(40), lambda t, g: t.normal_(generator=g).clamp_(-1, 1).mul_(3)),
        "overwritten": torch.full((4,), 2.5),
        "randn": torch.randn(5, 2, generator=torch.Generator().manual_seed(seed_of("randn"))),
        "rand": torch.rand(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed_of("rand"))),
        "linear.weight": expected("linear.weight", torch.empty(2, 3), lambda t, g: t.uniform_(-bound, bound, generator=g)),
        "linear.bias": expected("linear.bias", torch.empty(2), lambda t, g: t.uniform_(-bound, bound, generator=g)),
    }
    made = dict(built(Net).named_parameters())
    assert made.keys() == right.keys()
    for name, tensor in right.items():
        assert torch.equal(made[name], tensor), name


def test_what_is_read_while_the_module_is_built_is_what_it_holds_afterwards() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in ("summed", "listed", "shown", "viewed", "copied"):
                self.register_parameter(name, nn.Parameter(torch.empty(6, 4)))
                nn.init.normal_(self.get_parameter(name))
            self.sum = float(self.summed.detach().sum())
            self.list = self.listed.tolist()
            self.array = self.shown.detach().numpy().copy()
            self.row = self.viewed[2].detach().clone()
            self.register_buffer("norms", self.copied.detach().norm(dim=1))

    net = built(Net)
    assert net.sum == float(net.summed.detach().sum())
    assert net.list == net.listed.tolist()
    assert (net.array == net.shown.detach().numpy()).all()
    assert torch.equal(net.row, net.viewed[2])
    assert torch.equal(net.norms, net.copied.detach().norm(dim=1))
    assert all(0.4 < float(p.detach().std()) < 1.6 for p in net.parameters())


def test_a_tensor_that_is_no_parameter_and_no_buffer_is_made_too() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(3).normal_())
            self.table = torch.empty(4000).normal_()

    net, again = built(Net), built(Net, force=1)
    assert abs(float(net.table.mean())) < 0.1 and abs(float(net.table.std()) - 1) < 0.1
    assert torch.equal(net.table, again.table)


def test_changes_in_place_through_a_view_or_of_the_shape_are_those_of_the_call() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.summed = nn.Parameter(torch.empty(4, 6).fill_(1.0))
            with torch.no_grad():
                self.summed.view(2, 12).cumsum_(1)
            turned = torch.empty(4, 6).normal_()
            turned.t_()
            self.shape = tuple(turned.shape)
            self.turned = nn.Parameter(turned)
            self.embedding = nn.Embedding(5, 3, padding_idx=1)

    net = built(Net)
    assert torch.equal(net.summed.view(2, 12), torch.arange(1.0, 13).expand(2, 12))
    assert net.shape == tuple(net.turned.shape) == (6, 4) and torch.isfinite(net.turned).all()
    assert not net.embedding.weight[1].any() and net.embedding.weight[0].all()


def test_orthogonal_spectral_weight_normed_tied_and_truncated_weights_are_right() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.square = nn.Parameter(torch.empty(5, 5))
            self.wide = nn.Parameter(torch.empty(3, 7))
            nn.init.orthogonal_(self.square)
            nn.init.orthogonal_(self.wide)
            self.truncated = nn.Parameter(torch.empty(4000))
            nn.init.trunc_normal_(self.truncated, std=1.0, a=-1.0, b=1.0)
            self.spectral = parametrizations.spectral_norm(nn.Linear(8, 8), n_power_iterations=30)
            self.weighted = parametrizations.weight_norm(nn.Linear(6, 4))
            self.orthogonal = parametrizations.orthogonal(nn.Linear(6, 6))
            self.one, self.other = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.other.weight = self.one.weight
            self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False)

    net = built(Net)
    assert all(torch.isfinite(tensor).all() for tensor in [*net.parameters(), *net.buffers()])
    torch.testing.assert_close(net.square @ net.square.T, torch.eye(5))
    torch.testing.assert_close(net.wide @ net.wide.T, torch.eye(3))
    assert (
        float(net.truncated.detach().abs().max()) <= 1 and abs(float(net.truncated.detach().std()) - 0.5395) < 0.02
    )  # of N(0, 1) cut at ±1
    net.spectral(torch.zeros(1, 8))
    assert float(torch.linalg.matrix_norm(net.spectral.weight.detach(), 2)) == pytest.approx(1, abs=0.05)
    w = net.weighted.parametrizations.weight
    torch.testing.assert_close(w.original0, w.original1.norm(dim=1, keepdim=True))
    torch.testing.assert_close(net.orthogonal.weight @ net.orthogonal.weight.T, torch.eye(6), rtol=0, atol=1e-5)
    assert net.other.weight is net.one.weight
    first, second = net.encoder.layers
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))  # copies, by its constructor


def test_neither_more_modules_nor_the_order_nor_the_generator_in_force_changes_what_a_name_draws() -> None:
    class Net(nn.Module):
        def __init__(self, *names: str) -> None:
            super().__init__()
            for name in names:
                self.add_module(name, nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Embedding(3, 4)))
                self.register_parameter(f"{name}_scale", nn.Parameter(torch.randn(3)))

    small, large = built(lambda: Net("a", "b")), built(lambda: Net("c", "b", "a"), force=9)
    values = dict(large.named_parameters())
    assert all(torch.equal(p, values[name]) for name, p in small.named_parameters())


def test_asking_for_a_shape_draws_nothing() -> None:
    class Net(nn.Module):
        def __init__(self, beside: bool) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(4, 3).normal_())
            if beside:
                self.extra = nn.Parameter(self.weight.new_zeros(2, 3))
                self.mask = torch.ones_like(self.weight)

    assert torch.equal(built(lambda: Net(False)).weight, built(lambda: Net(True), force=5).weight)
