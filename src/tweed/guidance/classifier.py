"""Classifier guidance: Song et al. (ICLR 2021), Sec. 5; Dhariwal & Nichol, "Diffusion Models Beat GANs" (2021), Sec. 4.

By Bayes' rule the score of the noisy data given a condition is `grad log p(x_t) + grad_x log p(c | x_t)`: an
unconditional denoiser, and the gradient of a classifier of *noisy* states, make a conditional denoiser. A `scale` above 1
sharpens the classifier to `p(c | x_t)^scale`.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tweed.core.denoiser import Denoiser, Wrapper
from tweed.core.estimate import Estimate
from tweed.core.time import as_time, left
from tweed.errors import IncompatibleError, InputError

LogProb = Callable[..., Tensor]


class ClassifierGuidance(Wrapper):
    """Adds `scale grad_x log_prob(x, t, **cond)` to the score of a denoiser; one backward pass an evaluation.

    Where `alpha(t) = 0` the state says nothing of the data, so that no gradient can guide it: there the denoiser runs
    alone.

    Args:
        denoiser: on any process with Gaussian marginals.
        log_prob: `(x, t, **cond) -> (b,)`, differentiable in `x`: the log probability (up to a constant) of what is
            wanted given the state `x` (b, *event) at the times `t`, float64 (b,) (or longer, as the caller gave them).
            Any log likelihood does: a noise-conditional classifier's, or a measurement's.
        scale: a number, or one for each sample, shape (b,).
        given: the names of the conditions that are for `log_prob` alone; the denoiser is not told them. Where one of
            them is absent, or a sample is marked in the condition `drop`, nothing is guided. With `()` the guidance is
            always on, and every condition reaches both.

    Raises:
        InputError: the shape of `scale`, or of what `log_prob` returns, does not fit; it does not depend on `x`.
        IncompatibleError: the process is a two-sided interpolant, whose score needs the latent noise.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        log_prob: LogProb,
        scale: float | Float[Tensor, " b"] = 1.0,
        given: Sequence[str] = ("label",),
    ):
        super().__init__(denoiser)
        if self.process.endpoint == "drawn":
            raise IncompatibleError(
                f"denoiser: {type(self.process).__name__} is two-sided; expected a process with Gaussian marginals"
            )
        if not callable(log_prob):
            raise InputError(f"log_prob: {log_prob!r} was given; expected a function (x, t, **cond) -> (b,)")
        self.log_prob, self.scale, self.given = log_prob, scale, tuple(given)

    def forward(self, x, t, **cond):
        cond = {name: value for name, value in cond.items() if value is not None}
        estimate = self.denoiser(x, t, **{name: value for name, value in cond.items() if name not in self.given})
        if not len(x) or any(name not in cond for name in self.given):
            return estimate
        if isinstance(self.scale, Tensor) and self.scale.shape not in ((), (len(x),)):
            raise InputError(f"scale: shape {tuple(self.scale.shape)} was given; expected () or ({len(x)},)")
        shift = self.gradient(estimate.x, t, **cond).to(estimate.answer)
        scale = left(self.scale, shift) if isinstance(self.scale, Tensor) else self.scale
        if self.given and "drop" in cond:
            scale = scale * left((~cond["drop"]).to(shift.dtype), shift)
        answer = estimate.answer + left(self._per_score(estimate), shift) * scale * shift
        return estimate.replace(estimate.target, answer)

    def gradient(self, x: Float[Tensor, "b *event"], t: float | Tensor, **cond: Tensor) -> Float[Tensor, "b *event"]:
        """`grad_x log_prob(x, t, **cond)`, of each sample's own log probability."""
        time = as_time(t).to(x.device)
        time = time.expand(len(x)) if time.ndim == 0 else time.expand(len(x), *time.shape[1:])
        with torch.enable_grad():
            state = x.detach().requires_grad_()
            value = self.log_prob(state, time, **cond)
            if value.shape != (len(x),):
                raise InputError(
                    f"log_prob: shape {tuple(value.shape)} was returned; expected one number a sample, ({len(x)},)"
                )
            if not value.requires_grad:
                raise InputError("log_prob: its value does not depend on x; expected a differentiable function of x")
            # Samples do not meet in log_prob, so that the gradient of the sum holds each one's own.
            return torch.autograd.grad(value.sum(), state)[0]

    def _per_score(self, estimate: Estimate) -> Tensor:
        """How much the estimate's answer changes with its score, at a fixed state."""
        t = as_time(estimate.t)
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        row = estimate.target.row(self.process, t)
        # d eps = -sigma d score and d x_0 = -(sigma / alpha) d eps.
        return torch.where(alpha > 0.0, sigma**2 * row.data / alpha - sigma * row.noise, 0.0)
