"""Operators: adjoints, decompositions, and what each of them must leave alone or take away."""

import math

import pytest
import torch

from tweed import random
from tweed.errors import IncompatibleError, InputError
from tweed.inverse.operators import (
    JPEG,
    Blur,
    ChannelProjection,
    HighDynamicRange,
    Inpainting,
    LinearOperator,
    Matrix,
    PhaseRetrieval,
    Physics,
    Separable,
    SuperResolution,
    adjoint_error,
    as_operator,
    box_mask,
    check_adjoint,
    gaussian_kernel,
    gaussian_matrix,
    motion_kernel,
    random_mask,
)

F64 = torch.float64
EVENT = (3, 8, 12)

LINEAR = {
    "inpainting": lambda: Inpainting(EVENT, random_mask(EVENT, 0.4, 1)),
    "box": lambda: Inpainting(EVENT, box_mask(EVENT)),
    "nothing seen": lambda: Inpainting(EVENT, torch.zeros(1, dtype=torch.bool)),
    "average": lambda: SuperResolution(EVENT, 2),
    "bicubic": lambda: SuperResolution(EVENT, 4, "bicubic"),
    "reflecting blur": lambda: Separable(EVENT, gaussian_matrix(8, 0.7), gaussian_matrix(12, 1.2)),
    "tall": lambda: Separable((4, 5), random.normal((7, 4), 1, dtype=F64), random.normal((6, 5), 2, dtype=F64)),
    "gaussian": lambda: Blur(EVENT, gaussian_kernel(0.8)),
    "motion": lambda: Blur(EVENT, motion_kernel(4.0, 0.6)),
    "signal": lambda: Blur((1, 32), gaussian_kernel(2.0, axes=1)),
    "volume": lambda: Blur((4, 6, 8), gaussian_kernel(0.6, axes=3)[1:4, 1:4, 1:4]),
    "grey": lambda: ChannelProjection(EVENT),
    "mixing": lambda: ChannelProjection(EVENT, random.normal((5, 3), 3, dtype=F64)),
    "wide matrix": lambda: Matrix((2, 5), random.normal((4, 10), 4, dtype=F64)),
    "low rank": lambda: Matrix((6,), random.normal((9, 2), 5, dtype=F64) @ random.normal((2, 6), 6, dtype=F64)),
}


@pytest.fixture(params=LINEAR, ids=lambda name: name.replace(" ", "-"))
def operator(request) -> LinearOperator:
    return LINEAR[request.param]()


def test_the_adjoint_is_one(operator):
    assert adjoint_error(operator, seed=3) < 1e-13
    assert adjoint_error(operator, seed=3, dtype=torch.float32) < 1e-6
    check_adjoint(operator)


def test_shapes_and_batches(operator):
    x = random.normal((5, *operator.event), 1, dtype=F64)
    y = operator(x)
    assert y.shape == (5, *operator.measured)
    torch.testing.assert_close(operator(x[2:3]), y[2:3], rtol=1e-12, atol=1e-12)
    assert operator(x[:0]).shape == (0, *operator.measured)
    assert operator(x.float()).dtype == torch.float32
    with pytest.raises(InputError, match="x: shape"):
        operator(x[..., :-1])


def test_the_decomposition_is_one(operator):
    spectrum = operator.spectrum
    d = math.prod(operator.event)
    assert spectrum.values.shape == (d,)
    x = random.normal((4, *operator.event), 1, dtype=F64)
    c = spectrum.coefficients(x)
    torch.testing.assert_close(spectrum.event(c), x)
    torch.testing.assert_close(c.abs().square().sum(1), x.flatten(1).square().sum(1))
    seen = spectrum.values > 0.0
    observed = spectrum.observed(operator(x))
    torch.testing.assert_close(observed[:, seen], (spectrum.values * c)[:, seen])
    # Nothing of a measurement lies outside: its square is that of its coefficients.
    torch.testing.assert_close(observed[:, seen].abs().square().sum(1), operator(x).flatten(1).square().sum(1))
    singular = torch.linalg.svdvals(operator.matrix())
    found = spectrum.values.sort(descending=True).values
    n = min(len(singular), d)
    torch.testing.assert_close(found[:n], singular[:n], rtol=1e-10, atol=1e-10)
    assert float(found[n:].sum()) == 0.0


def test_the_pseudo_inverse_is_one(operator):
    y = operator(random.normal((3, *operator.event), 1, dtype=F64))
    back = operator.pseudo_inverse(y, floor=1e-12)
    torch.testing.assert_close(operator(back), y, rtol=1e-8, atol=1e-8)
    # It has nothing in the null space: the least norm.
    expected = y.flatten(1) @ torch.linalg.pinv(operator.matrix(), rtol=1e-12).T
    torch.testing.assert_close(back.flatten(1), expected, rtol=1e-7, atol=1e-7)


def test_conjugate_gradients_find_the_same_pseudo_inverse():
    class Plain(Separable):
        spectrum = None

    with_svd = SuperResolution((1, 8, 8), 2)
    plain = Plain((1, 8, 8), with_svd.rows, with_svd.columns)
    y = with_svd(random.normal((2, 1, 8, 8), 1, dtype=F64))
    torch.testing.assert_close(plain.pseudo_inverse(y), with_svd.pseudo_inverse(y))
    assert plain.norm() == pytest.approx(with_svd.norm(), rel=1e-6)
    assert with_svd.norm() == pytest.approx(0.5)


def test_blur_is_a_convolution():
    x = torch.zeros(1, 1, 9, 9, dtype=F64)
    x[..., 4, 4] = 1.0
    kernel = motion_kernel(3.0, 0.3)
    half = kernel.shape[0] // 2
    blurred = Blur((1, 9, 9), kernel)(x)
    torch.testing.assert_close(blurred[0, 0, 4 - half : 5 + half, 4 - half : 5 + half], kernel)
    constant = torch.full((1, 1, 9, 9), 0.7, dtype=F64)
    torch.testing.assert_close(Blur((1, 9, 9), gaussian_kernel(1.0))(constant), constant)
    # A motion to the right leaves rows alone.
    flat = motion_kernel(5.0, 0.0)
    assert flat.sum().item() == pytest.approx(1.0)
    assert flat[flat.shape[0] // 2].sum().item() == pytest.approx(1.0)


def test_what_resampling_preserves():
    ramp = torch.arange(16, dtype=F64).expand(1, 1, 16, 16).contiguous()
    for kernel in ("average", "bicubic"):
        small = SuperResolution((1, 16, 16), 2, kernel)(ramp)
        # Away from the edges a line stays a line, at the centres of the larger pixels.
        torch.testing.assert_close(small[0, 0, 4, 2:-2], 2.0 * torch.arange(2, 6, dtype=F64) + 0.5)
    constant = torch.ones(1, 1, 16, 16, dtype=F64)
    torch.testing.assert_close(SuperResolution((1, 16, 16), 4, "bicubic")(constant), torch.ones(1, 1, 4, 4, dtype=F64))


def test_jpeg():
    x = 0.5 * torch.sin(torch.arange(16.0, dtype=F64) / 3.0).expand(1, 3, 16, 16).contiguous()
    errors = [(JPEG((3, 16, 16), quality)(x) - x).abs().mean().item() for quality in (5, 30, 95)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.01
    once = JPEG((1, 16, 16), 20)
    grey = 0.9 * random.uniform((2, 1, 16, 16), 1, dtype=F64) - 0.45
    # What is compressed already stays as it is, where nothing is clipped.
    torch.testing.assert_close(once(once(grey)), once(grey), atol=1e-9, rtol=0)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(JPEG((3, 16, 16), 50)(x).sum(), x)
    torch.testing.assert_close(gradient, torch.ones_like(x), atol=1e-4, rtol=0)


def test_phase_retrieval_does_not_see_shifts_and_turns():
    operator = PhaseRetrieval((1, 8, 8))
    x = -torch.ones(1, 1, 8, 8, dtype=F64)
    x[..., 2:5, 1:4] = random.uniform((1, 1, 3, 3), 2, dtype=F64)
    y = operator(x)
    assert y.shape == (1, 1, 16, 16)
    torch.testing.assert_close(operator(x.roll((2, 3), (-2, -1))), y)
    torch.testing.assert_close(operator(x.flip(-1, -2)), y)
    energy = (x + 1.0).square().sum()
    assert y.square().sum().item() == pytest.approx(energy.item(), rel=1e-9)


def test_saturation_stops_gradients():
    x = torch.tensor([[0.2, 0.9]], dtype=F64, requires_grad=True)
    y = HighDynamicRange((2,))(x)
    assert y.tolist() == [[0.4, 1.0]]
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [[2.0, 0.0]]


def test_another_librarys_physics():
    class Halve:
        def A(self, x):
            return 0.5 * x[:, :2]

        def A_adjoint(self, y):
            return 0.5 * torch.cat((y, torch.zeros_like(y)), 1)

    operator = as_operator(Halve(), (4,))
    assert isinstance(operator, Physics)
    assert operator.measured == (2,)
    check_adjoint(operator)
    assert as_operator(operator) is operator
    wrong = Halve()
    wrong.A_adjoint = lambda y: torch.cat((y, y), 1)
    with pytest.raises(IncompatibleError, match="adjoint of Physics"):
        check_adjoint(Physics(wrong, (4,)))
    wrong.A_adjoint = lambda y: y
    with pytest.raises(IncompatibleError, match="gives shape"):
        check_adjoint(Physics(wrong, (4,)))
    with pytest.raises(InputError, match="shape of a sample"):
        as_operator(Halve())
    with pytest.raises(InputError, match="operator"):
        as_operator(3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Inpainting(EVENT, torch.zeros(5, dtype=torch.bool)), "mask: shape"),
        (lambda: Inpainting(EVENT, torch.tensor(0.5)), "mask: it has values"),
        (lambda: random_mask(EVENT, 1.5), "seen"),
        (lambda: box_mask(EVENT, -0.5), "share"),
        (lambda: SuperResolution(EVENT, 5), "factor"),
        (lambda: SuperResolution(EVENT, 2, "other"), "kernel"),  # type: ignore[arg-type]
        (lambda: Separable(EVENT, torch.eye(3), torch.eye(12)), "rows"),
        (lambda: Blur((4, 4), torch.ones(5, 5)), "kernel"),
        (lambda: gaussian_kernel(0.0), "std"),
        (lambda: gaussian_matrix(4, -1.0), "std"),
        (lambda: motion_kernel(0.0, 1.0), "length"),
        (lambda: Matrix((3,), torch.eye(4)), "matrix"),
        (lambda: ChannelProjection(EVENT, torch.eye(4)), "matrix"),
        (lambda: JPEG((1, 9, 8)), "event"),
        (lambda: JPEG((1, 8, 8), 0), "quality"),
        (lambda: PhaseRetrieval((4,)), "event"),
        (lambda: HighDynamicRange((4,), 0.0), "factor"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(InputError, match=message):
        make()
