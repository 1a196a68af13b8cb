"""Euler ancestral sampling, by the name that k-diffusion gave it."""

from tweed.solvers.ddim import DDIM


def EulerAncestral(eta: float = 1.0) -> DDIM:
    """Euler in `sigma / alpha` to `sigma_down`, then fresh noise of `sigma_up`: the same method as `DDIM(eta)`.

    With `sigma_up = eta sigma_s sqrt(1 - sigma_s^2 / sigma_t^2)` and `sigma_down^2 = sigma_s^2 - sigma_up^2`, the update
    `x + (sigma_down - sigma_t) eps + sigma_up z` is DDIM's Eq. 12 in `x / alpha`, whatever the process.
    """
    return DDIM(eta=eta)
