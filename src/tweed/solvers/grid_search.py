"""The search of `fit_grid`: levels as a smooth change of a fixed grid, and the coefficients that lower the error."""

import math
from collections.abc import Callable, Mapping
from copy import copy
from functools import partial
from itertools import pairwise, zip_longest

import numpy as np
import torch
from torch import Tensor

from tweed.core import grids
from tweed.core.starts import Start
from tweed.errors import InputError, NumericalError
from tweed.solvers.registry import describe
from tweed.solvers.sampling import sample

INITIAL: Mapping[str, Callable[..., Tensor]] = {
    "log_snr": grids.log_snr,
    "karras": grids.karras,
    "karras, rho 12": partial(grids.karras, rho=12.0),
    "uniform": grids.uniform,
}
"""The fixed grids that a search begins from, by name."""

_JUMPS = (0.1, 0.16, 0.22, 0.28, 0.34)
COARSE, FINE = (0.2, 0.1), (0.03, 0.005)
"""Differences of the coefficients, one a round: a network's error is rough in them, and a small difference sees just that."""
_PRIOR = 1e-2


def tell(progress: Callable[[str, float], None] | None, text: str, fraction: float) -> None:
    if progress is not None:
        progress(text, fraction)


class Search:
    """One search: the runs it makes, and the levels that coefficients stand for."""

    def __init__(self, denoiser, solver, steps, x, reference, cond, top, end, jump, coefficients):
        self.denoiser, self.solver, self.steps, self.cond = denoiser, solver, steps, cond
        self.x, self.reference, self.jump = x, reference.double(), jump
        self.process, self.top, self.end = denoiser.process, top, end
        # An end at infinite log-SNR is pinned, and its step is no part of the levels.
        self.pinned = [not math.isfinite(self.process.level(t).log_snr) for t in (top, end)]
        if jump is not None:
            self.pinned[0] = False
        inner = steps - sum(self.pinned)
        if inner < 1:
            raise InputError(f"steps: {steps} was given; expected more, since an end takes one of them")
        u = (np.arange(inner) + 0.5) / inner
        waves = min(coefficients, inner - 1)
        self.waves = (
            np.stack([np.cos(np.pi * k * u) for k in range(1, waves + 1)], 1) if waves else np.zeros((inner, 0))
        )
        # The first level moves where there is a jump, the last where a step to clean data follows it.
        self.moves = (jump is not None, self.pinned[1])

    def levels(self, base: np.ndarray, c: np.ndarray) -> np.ndarray:
        first, last = sum(self.moves[:1]), sum(self.moves)
        steps = np.diff(base) * np.exp(self.waves @ c[last:])
        begin = base[0] + (c[0] if self.moves[0] else 0.0)
        finish = base[-1] + (c[first] if self.moves[1] else 0.0)
        levels = begin + (finish - begin) * np.concatenate([[0.0], steps.cumsum() / steps.sum()])
        levels[-1] = finish
        return levels

    def times(self, base: np.ndarray, c: np.ndarray) -> list[float]:
        times = self.process.time(torch.from_numpy(self.levels(base, c))).tolist()
        if not self.moves[0] and not self.pinned[0]:
            times[0] = self.top
        if not self.pinned[1]:
            times[-1] = self.end
        return [self.top] * self.pinned[0] + times + [self.end] * self.pinned[1]

    def run(self, times: list[float]) -> Tensor | None:
        """The solver's results, float64; None where they are not finite or the levels are no grid."""
        if not all(0.0 <= b < a <= 1.0 for a, b in pairwise(times)):
            return None
        x = self.x if self.jump is None else self.jump(self.x, times[0])
        try:
            return sample(self.denoiser, Start(x, times[0]), solver=self.solver, times=times, cond=self.cond).double()
        except NumericalError:
            return None

    def distances(self, times: list[float]) -> Tensor | None:
        """The mean squared difference of each start."""
        result = self.run(times)
        return None if result is None else (result - self.reference).abs().square().flatten(1).mean(1)

    def score(self, times: list[float]) -> float:
        """The geometric mean of the distances over the starts: a start that went elsewhere counts once."""
        distances = self.distances(times)
        return math.inf if distances is None else (0.5 * distances.clamp_min(1e-30).log()).mean().exp().item()

    def part(self, count: int) -> "Search":
        """The same search on the first `count` starts."""
        cond = None if self.cond is None else {k: v[:count] if len(v) > 1 else v for k, v in self.cond.items()}
        fewer = copy(self)
        fewer.x, fewer.reference, fewer.cond = self.x[:count], self.reference[:count], cond
        return fewer

    def candidates(self, bases: list[tuple[float, np.ndarray]], tries: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Where fits begin: in turns a fixed grid, and one of the best points around the first two."""
        from scipy.stats import qmc

        none = np.zeros(self.free)
        plain = [(base, none) for _, base in bases]
        scanned: list[tuple[float, int, np.ndarray, np.ndarray]] = []
        wide, few = min(3, self.waves.shape[1]), self.part(16)
        if tries > 1 and wide:
            points = (2.0 * qmc.Sobol(wide, scramble=False).random(16) - 1.0) * np.array([1.5, 0.75, 0.5])[:wide]
            for base in (base for _, base in bases[:2]):
                for point in points[1:]:
                    c = none.copy()
                    c[sum(self.moves) : sum(self.moves) + wide] = point
                    scanned.append((few.score(few.times(base, c)), len(scanned), base, c))
        around = [(base, c) for score, _, base, c in sorted(scanned, key=lambda e: e[:2]) if math.isfinite(score)]
        mixed = [pair for pairs in zip_longest(plain, around) for pair in pairs if pair is not None]
        return mixed[:tries]

    @property
    def free(self) -> int:
        """The number of coefficients."""
        return self.waves.shape[1] + sum(self.moves)

    def initial(self, progress) -> list[tuple[float, np.ndarray]]:
        """Score and levels of the fixed grids (each at its best first level, where that is free), the best first."""
        top, low = (
            (self.process.t_max if self.pinned[0] else self.top),
            self.process.t_min if self.pinned[1] else self.end,
        )
        high = self.process.level(top).log_snr
        firsts = [top]
        if self.jump is not None:
            extent = self.process.level(low).log_snr - high
            firsts = [self.process.time(high + share * extent).item() for share in _JUMPS]
        none, found = np.zeros(self.free), []
        for number, (name, grid) in enumerate(INITIAL.items()):
            tell(progress, f"the grid {name}", 0.1 + 0.2 * number / len(INITIAL))
            scored = []
            for first in firsts:
                base = self.process.log_snr(grid(self.process, len(self.waves), start=first, end=low)).numpy()
                if np.isfinite(base).all():
                    scored.append((self.score(self.times(base, none)), base))
            found.append(min(scored, key=lambda pair: pair[0]))
        found.sort(key=lambda pair: pair[0])
        if not math.isfinite(found[0][0]):
            raise NumericalError(
                f"solver: {describe(self.solver)} left the finite numbers on each of: {', '.join(INITIAL)}"
            )
        return [pair for pair in found if math.isfinite(pair[0])]

    def fit(
        self, base: np.ndarray, c: np.ndarray, score: float, differences: tuple[float, ...]
    ) -> tuple[np.ndarray, float]:
        """The coefficients of the smallest score that is found from `c`, and that score."""
        for difference in differences if len(c) else ():
            distances = self.distances(self.times(base, c))
            if distances is None or not bool((distances > 0).any()):
                break
            weights = 1.0 / (1.0 + distances / (9.0 * distances.median().clamp_min(1e-30)))
            scale = (weights / (weights * distances).sum()).sqrt().reshape(-1, *(1,) * (self.reference.ndim - 1))
            residual = _Residual(self, base, scale, difference)
            tried = _least_squares(residual, c)
            reached = self.score(self.times(base, tried))
            if reached < score:
                c, score = tried, reached
        return c, score


class _Residual:
    """What is made small: the weighted differences, and a little of the coefficients themselves."""

    def __init__(self, search: Search, base: np.ndarray, scale: Tensor, difference: float):
        self.search, self.base, self.scale, self.difference = search, base, scale, difference
        self.last: tuple[bytes, np.ndarray] = (b"", np.empty(0))

    def __call__(self, c: np.ndarray) -> np.ndarray:
        if self.last[0] != c.tobytes():
            result = self.search.run(self.search.times(self.base, c))
            if result is None:
                # Beyond the levels that the process has: as far as can be.
                values = np.full(self.search.reference.numel(), 1e3)
            else:
                difference = self.scale * (result - self.search.reference)
                if difference.is_complex():
                    difference = torch.view_as_real(difference)
                values = difference.cpu().numpy().ravel() / math.sqrt(difference[0].numel())
            self.last = (c.tobytes(), np.concatenate([values, _PRIOR * c]))
        return self.last[1]

    def jacobian(self, c: np.ndarray) -> np.ndarray:
        here = self(c)
        h = self.difference
        columns = [(self(c + h * unit) - here) / h for unit in np.eye(len(c))]
        self.last = (c.tobytes(), here)
        return np.stack(columns, 1)


def _least_squares(residual: _Residual, c: np.ndarray) -> np.ndarray:
    from scipy.optimize import least_squares

    return least_squares(residual, c, jac=residual.jacobian, max_nfev=8, ftol=1e-2, xtol=1e-2).x  # type: ignore[arg-type]
