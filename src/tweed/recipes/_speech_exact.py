"""Where the score is exact: each bin's clean speech is a circular complex normal, and the noisy bin adds another."""

import torch
from torch import Tensor

import tweed as tw
from tweed.core import random, targets
from tweed.core.denoiser import FunctionDenoiser
from tweed.core.processes import OUVE
from tweed.data.spectrograms import CompressedSTFT
from tweed.recipes import Row, at_least, at_most, info, within
from tweed.restoration.speech import speech_grid, speech_sampler
from tweed.training import DenoisingLoss

PROCESS = OUVE()
CLEAN, NOISE = 0.04, 0.02  # variances of a bin
POSTERIOR = CLEAN * NOISE / (CLEAN + NOISE)
STEPS = (3, 5, 10, 30, 100)


def posterior_mean(y: Tensor) -> Tensor:
    """Of the clean bin given the noisy one."""
    return CLEAN / (CLEAN + NOISE) * y


def denoiser() -> FunctionDenoiser:
    """`E[x_0 | x_t, y]` for these bins."""

    def data(x: Tensor, t: float, y: Tensor) -> Tensor:
        level = PROCESS.level(t)
        gain = level.alpha * POSTERIOR / (level.alpha**2 * POSTERIOR + level.sigma**2)
        return posterior_mean(y) + gain * (x - level.beta * y - level.alpha * posterior_mean(y))

    return FunctionDenoiser(data, PROCESS, event=(1,))


def bins(n: int, seed: int) -> Tensor:
    """Noisy bins (n, 1), complex128."""
    return (CLEAN + NOISE) ** 0.5 * random.normal((n, 1), random.fold(seed, 1), dtype=torch.complex128)


def moments(y: Tensor, steps: int, corrector: int, seed: int) -> tuple[float, float]:
    """Of the published sampler: the mean's bias towards `y`, over |y - posterior mean|, and variance / posterior variance."""
    x = tw.sample(
        denoiser(),
        len(y),
        solver=speech_sampler(corrector_steps=corrector),
        steps=steps,
        grid=speech_grid,
        cond={"y": y},
        seed=random.fold(seed, 2),
    )
    mean, off = posterior_mean(y), y - posterior_mean(y)
    bias = ((x - mean) * off.conj()).real.sum() / off.abs().square().sum()
    variance = (x - mean - bias * off).abs().square().mean()
    return bias.item(), (variance / POSTERIOR).item()


def rows(seed: int, n: int) -> tuple[dict[str, dict[int, tuple[float, float]]], list[Row]]:
    """Moments by steps, with the corrector and without, and the relations that hold in closed form."""
    y = bins(n, seed)
    found = {
        name: {steps: moments(y, steps, corrector, seed) for steps in STEPS}
        for name, corrector in (("with corrector", 1), ("no corrector", 0))
    }
    bias, variance = found["with corrector"][30]
    mc = 20000 / n  # tolerances are stated for 20000 bins
    return found, [
        *_process_rows(seed, n),
        *_front_end_rows(seed),
        at_most("exact score, 30 steps: |bias| of the mean", abs(bias), 0.03 * mc**0.5, note="of |y - posterior mean|"),
        within("... variance, of the posterior's", variance, 1.0, 0.1 * mc**0.5),
        at_least(
            "3 steps: variance, of the posterior's", found["with corrector"][3][1], 10.0, note="too few: it explodes"
        ),
        info("30 steps, no corrector: bias, variance", "{:.3f}, {:.3f}".format(*found["no corrector"][30])),
    ]


def _process_rows(seed: int, n: int) -> list[Row]:
    t = torch.linspace(0.001, 0.999, 200, dtype=torch.float64)
    h = 1e-5
    rate = (PROCESS.sigma(t + h) ** 2 - PROCESS.sigma(t - h) ** 2) / (2 * h)
    residual = rate - (PROCESS.diffusion(t) ** 2 - 2 * PROCESS.stiffness * PROCESS.sigma(t) ** 2)
    x0, y = bins(n, random.fold(seed, 5)), bins(n, random.fold(seed, 6))
    batch = {"x": x0, "y": y}
    loss = DenoisingLoss(target=targets.Noise())
    prepared = loss.prepare(PROCESS, batch, seed=seed, step=0)
    score = -prepared["noise"] / PROCESS.sigma(prepared["t"])[:, None]
    perfect = FunctionDenoiser(lambda x, t, y: score, PROCESS, targets.Score(), event=(1,))
    return [
        at_most("d sigma^2/dt + 2 stiffness sigma^2 - g^2, largest", residual.abs().max(), 1e-5),
        at_most("sigma(0)", PROCESS.level(0.0).sigma, 0.0),
        at_most("simulated paths at t = 1: mean or variance off, in standard errors", _paths(seed, min(n, 4000)), 4.0),
        at_most("loss at the score -z / sigma", loss(perfect, prepared).max(), 1e-12),
    ]


def _paths(seed: int, n: int, steps: int = 400) -> float:
    """The deviation at t = 1 of simulated paths of the SDE from the marginal's mean and variance, in standard errors."""
    x0, y = 0.3 - 0.2j, -0.1 + 0.4j
    x = torch.full((n, 1), x0, dtype=torch.complex128)
    ends = torch.full((n, 1), y, dtype=torch.complex128)
    h = 1.0 / steps
    for i in range(steps):
        # Heun's drift and the noise at mid step: weak error O(h^2), far below a standard error.
        z = random.normal((n, 1), random.fold(seed, 7), draw=i, dtype=torch.complex128)
        kick = PROCESS.diffusion((i + 0.5) * h).item() * h**0.5 * z
        first = PROCESS.drift(x, i * h, ends)
        second = PROCESS.drift(x + h * first + kick, min((i + 1) * h, 1.0), ends)
        x = x + 0.5 * h * (first + second) + kick
    level = PROCESS.level(1.0)
    mean = level.alpha * x0 + level.beta * y
    off = (x.mean() - mean).abs().item() / (level.sigma / n**0.5)
    spread = abs((x - mean).abs().square().mean().item() / level.sigma**2 - 1.0) * n**0.5
    return max(off, spread)


def _front_end_rows(seed: int) -> list[Row]:
    stft = CompressedSTFT()
    waves = random.normal((2, 16000), random.fold(seed, 8), dtype=torch.float64) * 0.1
    back = stft.expand(stft.compress(waves), waves.shape[-1])
    return [at_most("waveform through the front end and back, largest error", (back - waves).abs().max(), 1e-5)]
