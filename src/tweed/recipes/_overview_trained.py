"""What is trained in `overview_statistics`: networks of subspace data over dimension and samples, and one told of a reward."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import tweed as tw
from tweed.analysis import off_support, subspace_distance
from tweed.core import random
from tweed.core.denoiser import Denoiser, NetworkDenoiser
from tweed.core.exact import MixtureDenoiser
from tweed.core.processes import VP
from tweed.core.targets import Data, Noise
from tweed.data import ring_mixture
from tweed.data.dataset import Tensors
from tweed.guidance import pseudo_labels, ridge
from tweed.metrics import sliced_wasserstein
from tweed.recipes import Progress
from tweed.solvers import DPMSolver
from tweed.training import DenoisingLoss, fit, times

F64 = torch.float64
PROCESS = VP()
SUBSPACE, PLAIN, NOISE = "subspace network", "plain network, data", "plain network, noise"
# Both are compared in the noise, at noise levels even in log-SNR, from sigma^2 = 1e-3 on.
T0 = PROCESS.time(0.5 * torch.tensor(999.0, dtype=F64).log()).item()
OBJECTIVE = DenoisingLoss(target=Noise(), times=times.LogSNR(least=-5.0, most=3.5, low=T0))


@dataclass(frozen=True)
class Sizes:
    """Ambient dimensions, samples of the data, steps and batch of training; samples of the sweep and its steps; the reward."""

    dims: tuple[int, ...] = (8, 32, 128)
    data: int = 2000
    steps: int = 600
    batch: int = 256
    width: int = 64
    drawn: int = 4000
    sweep: tuple[int, ...] = (100, 700, 5000)
    sweep_steps: int = 500
    reward_steps: int = 1200


SIZES = {
    "default": Sizes(),
    "gpu": Sizes(
        (8, 32, 128, 512), 2000, 20000, 512, 128, 20000, (100, 300, 1000, 3000, 10000), 5000, 20000
    ),
}  # fmt: skip


def frame(ambient: int, intrinsic: int, seed: int) -> Tensor:
    """Orthonormal columns, drawn evenly, float64."""
    return torch.linalg.qr(random.normal((ambient, intrinsic), seed, dtype=F64)).Q


def train(
    name: str, x: Tensor, latent: int, steps: int, sizes: Sizes, seed: int, vector: Tensor | None = None
) -> Denoiser:
    """A subspace network on the target `Data`, or a plain one of the same width and depth on `Data` or `Noise`."""
    config: dict[str, Any] = {
        "dim": x.shape[1],
        "width": sizes.width,
        "depth": 2,
        "vector_dim": int(vector is not None),
    }
    # The answer to the noise grows with the state, whose size a norm would hide.
    config |= {"name": "subspace", "latent_dim": latent} if name == SUBSPACE else {"name": "mlp", "norm": name != NOISE}
    network = tw.nets.build(config, random.fold(seed, 1))
    conditions = {} if vector is None else {"vector": vector.float()[:, None]}
    return fit(
        NetworkDenoiser(network, PROCESS, Noise() if name == NOISE else Data(), event=(x.shape[1],)),
        Tensors(x.float(), **conditions), steps=steps, objective=OBJECTIVE, batch_size=sizes.batch, lr=3e-3, warmup=50,
        schedule="cosine", ema=None, progress=False, seed=random.fold(seed, 2),
        device="cuda" if torch.cuda.is_available() else "cpu",
    ).denoiser  # fmt: skip


@dataclass(frozen=True)
class Fitted:
    """Sliced W2 of the latent samples, energy off the subspace a sample, and |VV^T - AA^T|^2 (None for a plain network)."""

    latent: float
    off: float
    distance: float | None


def _ring(ambient: int, n: int, seed: int) -> tuple[MixtureDenoiser, Tensor, Tensor]:
    made = ring_mixture(8)
    latent = MixtureDenoiser(made.means, made.covariances, made.weights, PROCESS)
    basis = frame(ambient, 2, random.fold(seed, 1, ambient))
    return latent, basis, latent.sample(n, random.fold(seed, 2)) @ basis.T


def dimensions(sizes: Sizes, seed: int, progress: Progress) -> dict[str, dict[int, Fitted]]:
    """Both networks on eight modes in the plane, the same points turned into spaces of growing dimension."""
    found: dict[str, dict[int, Fitted]] = {SUBSPACE: {}, PLAIN: {}, NOISE: {}}
    for number, ambient in enumerate(sizes.dims):
        latent, basis, x = _ring(ambient, sizes.data, seed)
        truth = latent.sample(sizes.drawn, random.fold(seed, 3))
        for name in found:
            progress(f"{name}, D = {ambient}", number / len(sizes.dims))
            model = train(name, x, 2, sizes.steps, sizes, random.fold(seed, 4, ambient)).cpu()
            made = _drawn(model, sizes.drawn, random.fold(seed, 5))
            network: Any = getattr(model, "network")  # noqa: B009
            distance = subspace_distance(network.basis, basis) if name == SUBSPACE else None
            error = sliced_wasserstein(made @ basis, truth, 64)
            found[name][ambient] = Fitted(error, off_support(made, basis).mean().item(), distance)
    return found


def _drawn(model: Denoiser, n: int, seed: int) -> Tensor:
    with torch.no_grad():
        return tw.sample(model, n, solver=DPMSolver(2), steps=24, grid=tw.grids.log_snr, seed=seed).double()


def sweep(sizes: Sizes, seed: int, progress: Progress, ambient: int = 32, noise: float = 0.1) -> dict[int, float]:
    """`|VV^T - AA^T|_F^2` by the number of samples, which have noise off the subspace too."""
    found = {}
    for number, n in enumerate(sizes.sweep):
        progress(f"subspace from {n} samples", number / len(sizes.sweep))
        _, basis, x = _ring(ambient, n, random.fold(seed, 6))
        x = x + noise * random.normal(x.shape, random.fold(seed, 7), dtype=F64)
        model: Any = train(SUBSPACE, x, 2, sizes.sweep_steps, sizes, random.fold(seed, 8)).cpu()
        found[n] = subspace_distance(model.network.basis, basis)
    return found


AMBIENT, SPREAD, NU, SD = 64, torch.tensor([1.0, 0.8, 0.6, 0.5], dtype=F64), 0.2, 0.9
"""Of the linear-reward world: variances of the latent, noise of the reward, its standard deviation over the data."""


@dataclass(frozen=True)
class RewardWorld:
    """`x = A z`, z ~ N(0, SPREAD), and the reward `theta . x` of standard deviation SD."""

    basis: Tensor
    theta: Tensor

    def draw(self, n: int, seed: int) -> Tensor:
        """Samples of the data, float64."""
        return (SPREAD.sqrt() * random.normal((n, len(SPREAD)), seed, dtype=F64)) @ self.basis.T


def reward_world(seed: int) -> RewardWorld:
    """A subspace and a direction in it, at random."""
    basis = frame(AMBIENT, len(SPREAD), random.fold(seed, 1))
    w = random.normal((1, len(SPREAD)), random.fold(seed, 2), dtype=F64)[0]
    return RewardWorld(basis, basis @ (w * SD / (SPREAD * w.square()).sum().sqrt()))


def labelled(world: RewardWorld, n: int, seed: int, basis: Tensor | None = None) -> Tensor:
    """Ridge's reward from `n` labelled samples; within `basis` where given."""
    x = world.draw(n, random.fold(seed, 3))
    return ridge(x, pseudo_labels(x, world.theta, NU, random.fold(seed, 4)), 1.0, basis)


@dataclass(frozen=True)
class Conditioned:
    """Samples at one target: mean reward, energy off the subspace, mean whitened square of the latent."""

    reward: float
    off: float
    shift: float


def reward(targets: Sequence[float], sizes: Sizes, seed: int, progress: Progress) -> dict[float, Conditioned]:
    """A subspace network told of pseudo-labels, sampled at each target."""
    progress("network told of the reward", 0.0)
    world = reward_world(seed)
    x = world.draw(5000, random.fold(seed, 5))
    # The data lie on their subspace exactly, so that four singular vectors are it.
    theta = labelled(world, 500, seed, torch.linalg.svd(x, full_matrices=False).Vh[: len(SPREAD)].T)
    label = pseudo_labels(x, theta, NU, random.fold(seed, 6))
    model = train(SUBSPACE, x, len(SPREAD), sizes.reward_steps, sizes, random.fold(seed, 7), label).cpu()
    found = {}
    for a in targets:
        vector = torch.full((2000, 1), a)
        with torch.no_grad():
            made = tw.sample(
                model, 2000, solver=DPMSolver(2), steps=24, grid=tw.grids.log_snr, cond={"vector": vector},
                seed=random.fold(seed, 8),
            ).double()  # fmt: skip
        white = (made @ world.basis).square() / SPREAD
        found[a] = Conditioned(
            (made @ world.theta).mean().item(), off_support(made, world.basis).mean().item(), white.sum(1).mean().item()
        )
    return found
