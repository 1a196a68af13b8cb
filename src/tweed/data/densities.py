"""Densities in the plane: the usual toy worlds, each with samples addressed by index and an exact log density.

Every one is centred near 0, with coordinates of standard deviation 0.5 to 1.2 and nearly all mass within radius 3.
Sample `index + i` under `seed` is the same whatever `n`. Where the literature's version has no closed density, the
nearest that has one stands in: noise in polar coordinates (rings, spirals, pinwheel), or Gaussian noise around a curve
(moons, s_curve, swiss_roll), whose density is an integral over the curve that Gauss-Legendre quadrature gives to
rounding.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tweed.core.random import normal, uniform
from tweed.data.dataset import check_indices, one
from tweed.data.mixtures import Mixture, ring_mixture
from tweed.errors import InputError, choose

Index = int | Int[Tensor, " n"]
Points = Float[Tensor, "n 2"]

_LOG_2PI = math.log(2.0 * math.pi)


def _u(n: int, width: int, seed: int, index: Index) -> Float[Tensor, "n w"]:
    return uniform((n, width), seed, index=index, draw=0, dtype=torch.float64)


def _z(n: int, width: int, seed: int, index: Index) -> Float[Tensor, "n w"]:
    return normal((n, width), seed, index=index, draw=1, dtype=torch.float64)


def _log_normal(x: Tensor, std: float) -> Tensor:
    return -0.5 * (x / std) ** 2 - math.log(std) - 0.5 * _LOG_2PI


def _polar(radius: Tensor, angle: Tensor) -> Float[Tensor, "n 2"]:
    return torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1)


# Curves with Gaussian noise. A curve maps u in (0, 1) and a uniform choice of one of its pieces to points.


def _moon(u: Tensor) -> Float[Tensor, "n 2 2"]:
    a = math.pi * u
    upper = torch.stack((a.cos() - 0.5, a.sin() - 0.25), dim=-1)
    return 1.2 * torch.stack((upper, -upper), dim=1)


def _s(u: Tensor) -> Float[Tensor, "n 1 2"]:
    a = 3.0 * math.pi * (u - 0.5)
    return 0.8 * torch.stack((a.sin(), a.sign() * (a.cos() - 1.0)), dim=-1)[:, None]


def _roll(u: Tensor) -> Float[Tensor, "n 1 2"]:
    a = 1.5 * math.pi * (1.0 + 2.0 * u)
    return (_polar(a, a)[:, None] - torch.tensor([2.0, 0.0], dtype=u.dtype)) / 7.0


def _around(curve: Callable[[Tensor], Tensor], noise: float, n: int, seed: int, index: Index) -> Tensor:
    u = _u(n, 2, seed, index)
    pieces = curve(u[:, 0])
    piece = (u[:, 1] * pieces.shape[1]).long()
    return pieces[torch.arange(n), piece] + noise * _z(n, 2, seed, index)


def _around_log_prob(curve: Callable[[Tensor], Tensor], noise: float, count: int, x: Points) -> Float[Tensor, " n"]:
    import numpy as np

    # Two panels of `count` nodes, less than `noise` apart: S has a kink of the second order at its middle.
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(count))
    u = torch.cat((0.25 * (nodes + 1.0), 0.25 * (nodes + 3.0)))
    points = curve(u)
    log_weight = (0.25 * weights.repeat(2)).log()[:, None].expand(points.shape[:2]) - math.log(points.shape[1])
    points, log_weight = points.reshape(-1, 2), log_weight.reshape(-1)

    def part(x: Tensor) -> Tensor:
        square = (x[:, None, :] - points).square().sum(-1)
        return (log_weight - 0.5 * square / noise**2).logsumexp(1) - 2.0 * math.log(noise) - _LOG_2PI

    return torch.cat([part(rows) for rows in x.double().split(8192)])


_MOON_NOISE, _S_NOISE, _ROLL_NOISE = 0.1, 0.1, 0.07


def moons(n: int, seed: int = 0, index: Index = 0) -> Points:
    """Two interleaved half circles of radius 1.2, noise 0.1."""
    return _around(_moon, _MOON_NOISE, n, seed, index).float()


def s_curve(n: int, seed: int = 0, index: Index = 0) -> Points:
    """A letter S of two three-quarter circles of radius 0.8, noise 0.1."""
    return _around(_s, _S_NOISE, n, seed, index).float()


def swiss_roll(n: int, seed: int = 0, index: Index = 0) -> Points:
    """A spiral rolled out from angle 1.5 pi to 4.5 pi, radius = angle / 7, noise 0.07."""
    return _around(_roll, _ROLL_NOISE, n, seed, index).float()


# Rings: radius R_k + noise (reflected at 0), angle uniform.

_RADII, _RING_NOISE = (0.6, 1.2, 1.8), 0.08


def _rings(radii: tuple[float, ...], n: int, seed: int, index: Index) -> Points:
    u = _u(n, 2, seed, index)
    radius = torch.tensor(radii, dtype=torch.float64)[(u[:, 1] * len(radii)).long()]
    radius = (radius + _RING_NOISE * _z(n, 1, seed, index)[:, 0]).abs()
    return _polar(radius, 2.0 * math.pi * u[:, 0]).float()


def _rings_log_prob(radii: tuple[float, ...], x: Points) -> Float[Tensor, " n"]:
    r = x.double().norm(dim=1)
    offsets = torch.stack([sign * r - R for R in radii for sign in (1.0, -1.0)], dim=1)
    return _log_normal(offsets, _RING_NOISE).logsumexp(1) - math.log(len(radii)) - (2.0 * math.pi * r).log()


def rings(n: int, seed: int = 0, index: Index = 0) -> Points:
    """Three concentric rings of radii 0.6, 1.2, 1.8, equally likely, radial noise 0.08."""
    return _rings(_RADII, n, seed, index)


def circles(n: int, seed: int = 0, index: Index = 0) -> Points:
    """Two concentric circles of radii 0.75 and 1.5, equally likely, radial noise 0.08."""
    return _rings((0.75, 1.5), n, seed, index)


# Arms: a law of the radius, and an angle that turns with it, with wrapped normal noise.

_SPIRAL = {"arms": 2, "rate": 1.5 * math.pi, "noise": 0.3}
_SPIRAL_RADIUS = 2.0
_PINWHEEL = {"arms": 5, "rate": 0.8, "noise": 0.12}
_PINWHEEL_RADIUS, _PINWHEEL_STD = 1.25, 0.4


def _angle(radius: Tensor, u: Tensor, z: Tensor, arms: int, rate: float, noise: float) -> Tensor:
    return rate * radius + (u * arms).floor() * (2.0 * math.pi / arms) + noise * z


def _angle_log_prob(x: Tensor, radius: Tensor, arms: int, rate: float, noise: float) -> Tensor:
    """Log density of the angle given the radius: a wrapped normal around each arm."""
    gap = 2.0 * math.pi / arms
    offset = torch.remainder(torch.atan2(x[:, 1], x[:, 0]) - rate * radius, gap)
    # Arms beyond these are over ten standard deviations away.
    turns = torch.arange(-math.ceil(10.0 * noise / gap) - 1, math.ceil(10.0 * noise / gap) + 2)
    return _log_normal(offset[:, None] + gap * turns, noise).logsumexp(1) - math.log(arms)


def two_spirals(n: int, seed: int = 0, index: Index = 0) -> Points:
    """Two arms that turn by 3 pi to radius 2, uniform in area, half-thickness about 0.06."""
    u, z = _u(n, 2, seed, index), _z(n, 1, seed, index)
    radius = _SPIRAL_RADIUS * u[:, 0].sqrt() * (1.0 - 2e-7)  # so that rounding to float32 stays inside
    return _polar(radius, _angle(radius, u[:, 1], z[:, 0], **_SPIRAL)).float()


def _two_spirals_log_prob(x: Points) -> Float[Tensor, " n"]:
    x = x.double()
    radius = x.norm(dim=1)
    inside = _angle_log_prob(x, radius, **_SPIRAL) + math.log(2.0 / _SPIRAL_RADIUS**2)
    return inside.masked_fill(radius > _SPIRAL_RADIUS, -math.inf)


def pinwheel(n: int, seed: int = 0, index: Index = 0) -> Points:
    """Five curved blades: radius normal (1.25, 0.4; reflected at 0), angle 0.8 radians a unit of radius, noise 0.12."""
    u, z = _u(n, 1, seed, index), _z(n, 2, seed, index)
    radius = (_PINWHEEL_RADIUS + _PINWHEEL_STD * z[:, 1]).abs()
    return _polar(radius, _angle(radius, u[:, 0], z[:, 0], **_PINWHEEL)).float()


def _pinwheel_log_prob(x: Points) -> Float[Tensor, " n"]:
    x = x.double()
    radius = x.norm(dim=1)
    radial = torch.stack([sign * radius - _PINWHEEL_RADIUS for sign in (1.0, -1.0)], dim=1)
    return _angle_log_prob(x, radius, **_PINWHEEL) + _log_normal(radial, _PINWHEEL_STD).logsumexp(1) - radius.log()


def checkerboard(n: int, seed: int = 0, index: Index = 0) -> Points:
    """Uniform on the eight black squares of a 4 x 4 board on [-2, 2]^2."""
    u = _u(n, 3, seed, index).clamp_max(1.0 - 2e-7)  # so that rounding to float32 stays in the square
    square = (8.0 * u[:, 2]).long()
    row, column = square // 2, 2 * (square % 2) + (square // 2) % 2
    return torch.stack((column + u[:, 0] - 2.0, row + u[:, 1] - 2.0), dim=-1).float()


def _checkerboard_log_prob(x: Points) -> Float[Tensor, " n"]:
    cell = x.double().floor()
    black = ((cell >= -2.0) & (cell < 2.0)).all(1) & (torch.remainder(cell.sum(1), 2.0) == 0.0)
    return torch.where(black, -math.log(8.0), -math.inf).double()


def _eight() -> Mixture:
    return ring_mixture(8)


def eight_gaussians(n: int, seed: int = 0, index: Index = 0) -> Points:
    """Eight Gaussians of standard deviation 0.1 evenly on a circle of radius sqrt 2."""
    return _eight().sample(n, seed, index).float()


@dataclass(frozen=True)
class Density:
    """`sample(n, seed, index) -> (n, 2)` float32, and `log_prob(x) -> (n,)` float64 in nats."""

    sample: Callable[..., Points]
    log_prob: Callable[[Points], Float[Tensor, " n"]]


DENSITIES = {
    "checkerboard": Density(checkerboard, _checkerboard_log_prob),
    "circles": Density(circles, lambda x: _rings_log_prob((0.75, 1.5), x)),
    "eight_gaussians": Density(eight_gaussians, lambda x: _eight().log_prob(x)),
    "moons": Density(moons, lambda x: _around_log_prob(_moon, _MOON_NOISE, 48, x)),
    "pinwheel": Density(pinwheel, _pinwheel_log_prob),
    "rings": Density(rings, lambda x: _rings_log_prob(_RADII, x)),
    "s_curve": Density(s_curve, lambda x: _around_log_prob(_s, _S_NOISE, 72, x)),
    "swiss_roll": Density(swiss_roll, lambda x: _around_log_prob(_roll, _ROLL_NOISE, 160, x)),
    "two_spirals": Density(two_spirals, _two_spirals_log_prob),
}


def log_density(name: str, x: Points) -> Float[Tensor, " n"]:
    """Log density in nats of the density `name` at `x` (n, 2); -inf outside its support.

    Raises:
        InputError: an unknown name, or `x` not of shape (n, 2).
    """
    density = choose("name", name, DENSITIES)
    if x.ndim != 2 or x.shape[1] != 2:
        raise InputError(f"x: shape {tuple(x.shape)} was given; expected (n, 2)")
    return density.log_prob(x)


class Plane:
    """One of `DENSITIES` as a data set of `length` points (2,), sample `i` being point `i` under `seed`.

    Raises:
        InputError: an unknown name, or a negative length.
    """

    shape = (2,)
    num_classes = None
    conditions = ()

    def __init__(self, name: str, length: int = 100_000, seed: int = 0):
        if length < 0:
            raise InputError(f"length: {length} was given; expected at least 0")
        self.density: Density = choose("name", name, DENSITIES)
        self.name, self.seed, self._length = name, seed, length

    def __len__(self) -> int:
        return self._length

    def batch(self, indices: Int[Tensor, " n"]) -> dict[str, Tensor]:
        indices = check_indices(indices, len(self))
        return {"x": self.density.sample(len(indices), self.seed, indices)}

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return one(self, i)
