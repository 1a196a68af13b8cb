"""The dimension of the data near a point, from a score: by the flow's singular values, and by one Jacobian.

Along the probability flow towards the data the derivative Y of the state by its start obeys `dY/dt = (f - g^2 J / 2) Y`;
its singular values stay where the data extends, and fall like sigma where it does not (Horvat & Pfister, ICLR 2024, Sec. 4).
Statically, `-sigma^2 J` has eigenvalues near 0 along the data and near 1 across it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tweed.analysis.jacobian import score_jacobian
from tweed.core.denoiser import Denoiser
from tweed.errors import InputError

Bend = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]
"""`(score, jacobian, t) -> (score, jacobian)`: another field made from these, with a gauge term, say."""


@dataclass(frozen=True)
class Dimensions:
    """What the estimators say of each sample.

    Attributes:
        flow: the number of singular values that stay, shape (b,).
        static: the number of eigenvalues of `-sigma^2 (J + J^T) / 2` below 1/2, at the last level, shape (b,).
        slopes: of log singular values against log sigma, ascending, shape (b, d): 0 along the data, 1 across it.
        eigenvalues: of the static test, ascending, shape (b, d).
        x: where the flow arrived, shape (b, d).
    """

    flow: Int[Tensor, " b"]
    static: Int[Tensor, " b"]
    slopes: Float[Tensor, "b d"]
    eigenvalues: Float[Tensor, "b d"]
    x: Float[Tensor, "b d"]


def intrinsic_dimension(
    denoiser: Denoiser,
    x: Float[Tensor, "b d"],
    start: float,
    end: float,
    steps: int = 120,
    *,
    last: float = 1.0 / 3.0,
    bend: Bend | None = None,
) -> Dimensions:
    """Both estimates at the points where the flow carries `x` from time `start` to time `end`.

    State and derivative are followed together by Heun's method on equal steps in log sigma. The smallest noise must be small
    against the data's curvature, and large against the score's own error.

    Args:
        x: states at time `start`.
        last: the share of the steps, the last ones, over which slopes are fitted.
        bend: another field made from the score and its Jacobian.

    Raises:
        InputError: fewer than 6 steps, or times that do not fall.
    """
    process = denoiser.process
    if steps < 6 or not 0.0 <= end < start <= 1.0:
        raise InputError(
            f"steps, start, end: {steps}, {start}, {end} were given; expected at least 6, and 0 <= end < start <= 1"
        )
    log_snr = torch.linspace(process.level(start).log_snr, process.level(end).log_snr, steps + 1, dtype=torch.float64)
    times = process.time(log_snr).tolist()
    times[0], times[-1] = start, end

    def field(state: Tensor, t: float) -> tuple[Tensor, Tensor, Tensor]:
        score, jacobian = denoiser(state, t).score.double(), score_jacobian(denoiser, state, t).double()
        if bend is not None:
            score, jacobian = bend(score, jacobian, t)
        level, square = process.level(t), process.diffusion(t).item() ** 2
        rate = level.alpha_dot / level.alpha
        eye = torch.eye(state.shape[1], dtype=torch.float64)
        return rate * state - 0.5 * square * score, rate * eye - 0.5 * square * jacobian, jacobian

    state = x.double()
    y = torch.eye(x.shape[1], dtype=torch.float64).expand(len(x), -1, -1)
    kept: list[Tensor] = []
    speed, growth, jacobian = field(state, times[0])
    for t, s in pairwise(times):
        h = s - t
        ahead, turned, _ = field(state + h * speed, s)
        first = growth @ y
        y = y + 0.5 * h * (first + turned @ (y + h * first))
        state = state + 0.5 * h * (speed + ahead)
        speed, growth, jacobian = field(state, s)
        kept.append(torch.linalg.svdvals(y).clamp_min(1e-300).log())
    count = max(int(steps * last), 3)
    spread = torch.tensor(
        [process.level(t).sigma / process.level(t).alpha for t in times[-count:]], dtype=torch.float64
    ).log()
    logs = torch.stack(kept[-count:])
    centred = (spread - spread.mean())[:, None, None]
    slopes = ((centred * (logs - logs.mean(0))).sum(0) / centred.square().sum(0)).sort(1).values
    sigma = process.level(times[-1]).sigma
    values = torch.linalg.eigvalsh(-0.5 * sigma**2 * (jacobian + jacobian.mT))
    return Dimensions((slopes < 0.5).sum(1), (values < 0.5).sum(1), slopes, values, state)
