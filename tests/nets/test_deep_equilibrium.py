"""Fixed points: the layer, its gradient, independence of the batch, and what does not converge."""

import pytest
import torch
from torch import nn

from tweed.core import random
from tweed.errors import InputError, NumericalError
from tweed.nets import DeepEquilibrium, anderson, initialise

F64 = torch.float64


class Cell(nn.Module):
    """A contraction of factor `gain` in z."""

    def __init__(self, gain=0.9, dim=6):
        super().__init__()
        self.w, self.u = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False)
        initialise(self, 3)
        self.double()
        with torch.no_grad():
            self.w.weight.mul_(gain / torch.linalg.matrix_norm(self.w.weight, 2))

    def forward(self, z, x):
        return torch.tanh(self.w(z) + self.u(x))


def inputs(b=5):
    return random.normal((b, 6), 1, dtype=F64)


def test_the_gradient_is_that_of_many_layers():
    cell, x = Cell(), inputs().requires_grad_()
    tensors = [x, *cell.parameters()]
    z = torch.zeros_like(x)
    for _ in range(500):
        z = cell(z, x)
    found = DeepEquilibrium(cell, tolerance=1e-10)(x)
    torch.testing.assert_close(found, z, rtol=0, atol=1e-8)
    weight = random.normal(tuple(z.shape), 2, dtype=F64)
    for a, b in zip(
        torch.autograd.grad((found * weight).sum(), tensors),
        torch.autograd.grad((z * weight).sum(), tensors),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_a_gradient_without_the_implicit_part_is_another():
    cell, x = Cell(), inputs().requires_grad_()
    z = DeepEquilibrium(cell, tolerance=1e-10)(x)
    full = torch.autograd.grad(z.sum(), x)[0]
    last = torch.autograd.grad(cell(z.detach(), x).sum(), x)[0]
    assert (full - last).norm() > 0.1 * last.norm()


def test_linear_equations_are_solved_exactly():
    a = 0.9 * torch.linalg.qr(random.normal((4, 4), 5, dtype=F64))[0]
    b = random.normal((3, 4), 6, dtype=F64)
    found = anderson(lambda z: z @ a.mT + b, torch.zeros(3, 4, dtype=F64), tolerance=1e-11)
    exact = torch.linalg.solve(torch.eye(4, dtype=F64) - a, b.mT).mT
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-9)


def test_the_scale_of_a_cotangent_does_not_matter():
    cell, x = Cell(), inputs().requires_grad_()
    layer = DeepEquilibrium(cell, tolerance=1e-10)
    one, small = (torch.autograd.grad(layer(x).sum() * s, x)[0] / s for s in (1.0, 1e-9))
    torch.testing.assert_close(one, small, rtol=1e-7, atol=1e-9)
    assert torch.autograd.grad((layer(x) * 0.0).sum(), x)[0].abs().max() == 0.0


def test_a_sample_does_not_depend_on_its_batch():
    layer, x = DeepEquilibrium(Cell(), tolerance=1e-6), inputs(7)
    alone = torch.cat([layer(x[i : i + 1]) for i in range(7)])
    torch.testing.assert_close(layer(x), alone, rtol=0, atol=1e-10)
    assert layer(x[:0]).shape == (0, 6)


def test_anderson_takes_fewer_evaluations_than_iteration():
    counts = {}
    for memory in (1, 5):
        cell, calls = Cell(0.95), []
        DeepEquilibrium(
            lambda z, x, cell=cell, calls=calls: calls.append(0) or cell(z, x), memory=memory, max_iterations=999
        )(inputs())
        counts[memory] = len(calls)
    assert counts[5] < 0.8 * counts[1]


def test_what_does_not_converge_is_an_error_forward_and_backward():
    with pytest.raises(NumericalError, match="not converged within 50"):
        DeepEquilibrium(lambda z, x: z + 1.0 + x.square(), max_iterations=50)(inputs())
    layer = DeepEquilibrium(Cell(0.99), tolerance=1e-8)
    layer.backward_options = layer.backward_options | {"max_iterations": 2}
    with pytest.raises(NumericalError, match="backward pass"):
        layer(inputs().requires_grad_()).sum().backward()


def test_bad_input():
    with pytest.raises(InputError, match="tolerance"):
        anderson(torch.cos, inputs(), tolerance=0.0)
    with pytest.raises(InputError, match="shape of z"):
        anderson(lambda z: z[:, :1], inputs())
