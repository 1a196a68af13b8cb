"""Solvers of tweed in pipelines of diffusers: a scheduler that is saved, loaded and stepped as any of theirs."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from torch import Tensor

from tweed.core.denoiser import Denoiser
from tweed.core.estimate import Estimate
from tweed.core.processes import EDM, FromBetas
from tweed.core.time import as_time, left
from tweed.errors import IncompatibleError, InputError, choose
from tweed.interop.schedules import Schedule, configuration, read_schedule
from tweed.solvers.base import Problem, Solver, State
from tweed.solvers.registry import describe, parse


class DiffusersScheduler(SchedulerMixin, ConfigMixin):
    """A diffusers scheduler whose steps are those of a solver of tweed.

    `pipe.scheduler = tw.interop.DiffusersScheduler("DPMSolver(order=3)", like=pipe.scheduler)`; it is written into the
    pipeline's folder and comes back with it. Noise of stochastic solvers follows from the `generator` that a pipeline is given.

    Args:
        solver: a solver with one evaluation a step, or its text as on the command line.
        like: the scheduler, or its configuration, that the model was trained with; its betas, prediction, spacing and shift are
            taken over.

    Raises:
        InputError: a solver or configuration that is not understood.
        IncompatibleError: the solver evaluates more than once a step, or does not fit the process.
    """

    config_name = "scheduler_config.json"
    order = 1

    def __init__(self, solver: str | Solver = "DPMSolver", like: Any = None):
        text = solver if isinstance(solver, str) else describe(solver)
        if like is None:
            like = {"beta_schedule": "linear"}
        told = configuration(like)
        # Pipelines read single settings of their scheduler.
        told = {name: _plain(value) for name, value in told.items()}
        shown = {name: value for name, value in told.items() if not name.startswith("_")}
        self.register_to_config(**shown, solver=text, like=told)
        self.solver, self.schedule = parse(text), read_schedule(told)
        if self.solver.evaluations != 1 or self.solver.adaptive:
            raise IncompatibleError(
                f"solver: {text} evaluates {self.solver.evaluations} times a step; a diffusers loop evaluates once"
            )
        self.solver.check(self.schedule.process)
        self.timesteps = torch.zeros(0)
        self.num_inference_steps: int | None = None
        self._times: tuple[float, ...] = ()
        self._begin: int | None = None
        self._run: _Run | None = None

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """From its own configuration, or from that of any other scheduler, with `solver=`."""
        solver = kwargs.pop("solver", config.get("solver", "DPMSolver"))
        made = cls(solver, config)
        return (made, kwargs) if return_unused_kwargs else made

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation of the noise that a run starts from."""
        return self.schedule.process.level(1.0).sigma if isinstance(self.schedule.process, EDM) else 1.0

    def __len__(self) -> int:
        return int(self.config.get("num_train_timesteps", 1000))

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Where in the grid the next run begins; pipelines from an image call it."""
        self._begin = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        **unused: Any,
    ) -> None:
        """The grid of the next run, spaced as the scheduler that this one is like.

        Args:
            num_inference_steps: steps.
            sigmas: for flow models, the noise levels before the shift, instead.
            mu: for flow models, the logarithm of the shift.

        Raises:
            InputError: neither steps nor levels were given, or none.
        """
        if sigmas is None and (num_inference_steps is None or num_inference_steps < 1):
            raise InputError(f"num_inference_steps: {num_inference_steps} was given; expected at least 1")
        times = self._grid(num_inference_steps, sigmas, mu)
        self._times = tuple(times.tolist())
        self.num_inference_steps = len(times) - 1
        self.timesteps = self._label(times[:-1]).to(device=device, dtype=torch.float32)
        self._begin, self._run = None, None

    def _grid(self, steps: int | None, sigmas: Sequence[float] | None, mu: float | None) -> Tensor:
        process, config = self.schedule.process, self.config["like"]
        if isinstance(process, FromBetas) and steps is not None:
            n = len(process.betas)
            index = choose("timestep_spacing", config.get("timestep_spacing", "leading"), _SPACINGS)(
                n, steps, int(config.get("steps_offset", 0))
            )
            last = 0.0 if config.get("set_alpha_to_one", True) else 1.0 / n
            return torch.cat(((index.double() + 1.0) / n, torch.tensor([last], dtype=torch.float64)))
        if isinstance(process, EDM | FromBetas):
            return self.schedule.grid()(process, steps if steps is not None else len(sigmas or ()))
        shift = self.schedule.shift if mu is None else torch.tensor(float(mu), dtype=torch.float64).exp().item()
        if sigmas is not None:
            t = torch.as_tensor(sigmas, dtype=torch.float64)
        else:
            # Down to the shifted smallest level, then shifted once more: so theirs.
            low = torch.tensor(1.0 / len(self), dtype=torch.float64)
            low = low if mu is not None else shifted(low, self.schedule.shift)
            t = torch.linspace(1.0, low.item(), steps or 1, dtype=torch.float64)
        return torch.cat((shifted(t, shift), torch.zeros(1, dtype=torch.float64)))

    def _label(self, times: Tensor) -> Tensor:
        # What the network is told.
        process = self.schedule.process
        if isinstance(process, FromBetas):
            return process.index(times)
        if isinstance(process, EDM):
            return -0.25 * process.log_snr(times)
        return self.schedule.time_scale * times

    def _time_of(self, timestep: Tensor) -> Tensor:
        # The times of labels, which need not be those of the grid.
        process, label = self.schedule.process, timestep.double().cpu()
        if isinstance(process, FromBetas):
            return (label + 1.0) / len(process.betas)
        return process.time(-4.0 * label) if isinstance(process, EDM) else label / self.schedule.time_scale

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """What the network sees of a sample: divided by its standard deviation for EDM, itself for others."""
        if not isinstance(self.schedule.process, EDM):
            return sample
        level = self.schedule.process.level(self._time_of(torch.as_tensor(timestep)).item())
        data_std: float = self.schedule.target.data_std  # type: ignore[attr-defined]
        return sample / (level.sigma**2 + data_std**2) ** 0.5

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Any = None,
        return_dict: bool = True,
        **unused: Any,
    ) -> SchedulerOutput | tuple[Tensor]:
        """The sample at the next time, from the network's answer at this one.

        Raises:
            InputError: `set_timesteps` was not called, the grid is at its end, or the time is not on it.
        """
        if self._run is None:
            self._run = self._start(timestep, sample, generator)
        made = self._run.step(model_output, sample)
        return SchedulerOutput(prev_sample=made) if return_dict else (made,)

    def _start(self, timestep: Any, sample: Tensor, generator: Any) -> "_Run":
        if not self._times:
            raise InputError("step: no grid was set; expected set_timesteps(n) before the first step")
        begin = self._begin
        if begin is None:
            off = (self.timesteps.cpu().double() - float(timestep)).abs()
            begin = int(off.argmin())
            if off[begin] > 1e-3 * max(1.0, abs(float(timestep))):
                raise InputError(f"timestep: {float(timestep)} was given; expected one of scheduler.timesteps")
        seed = 0
        if self.solver.stochastic:
            one = generator[0] if isinstance(generator, list) else generator
            where = "cpu" if one is None else one.device
            seed = int(torch.randint(2**31, (1,), generator=one, device=where))
        return _Run(self.solver, self.schedule, self._times[begin:], sample, seed)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Samples with noise, as at these time steps."""
        t = self._time_of(torch.atleast_1d(torch.as_tensor(timesteps))).to(original_samples.device)
        process = self.schedule.process
        alpha, sigma = (left(c, original_samples) for c in (process.alpha(as_time(t)), process.sigma(as_time(t))))
        return (alpha * original_samples + sigma * noise).to(original_samples.dtype)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """`add_noise` by the name that flow pipelines call it."""
        return self.add_noise(sample, noise, timestep)


class _Answered(Denoiser):
    """A denoiser that has been asked already."""

    def __init__(self, schedule: Schedule):
        super().__init__()
        self.process, self.target = schedule.process, schedule.target
        self.answers: list[Tensor] = []
        self.time: float | Tensor = 1.0

    def forward(self, x, t, **cond):
        if not self.answers or isinstance(t, Tensor) or t != self.time:
            what = "at another time than the grid's" if self.answers else "more than once"
            raise IncompatibleError(
                f"solver: it evaluates {what} in this step; a diffusers loop evaluates once, at the grid's"
            )
        return Estimate(x, t, self.answers.pop(), self.process, self.target)


class _Run:
    """The steps of one run, in float32 or better, whatever the pipeline keeps its samples in."""

    def __init__(self, solver: Solver, schedule: Schedule, times: tuple[float, ...], sample: Tensor, seed: int):
        self.solver, self.denoiser = solver, _Answered(schedule)
        self.problem = Problem(self.denoiser, times, seed=seed)
        self.state: State = solver.init(self.problem, _wide(sample))
        self.at, self.handed = 0, sample

    def step(self, answer: Tensor, sample: Tensor) -> Tensor:
        if self.at >= self.problem.steps:
            raise InputError("step: the grid is at its end; expected set_timesteps before another run")
        if sample is not self.handed:
            self.state = self.state._replace(x=_wide(sample))
        self.denoiser.answers, self.denoiser.time = [answer], self.problem.times[self.at]
        self.state = self.solver.step(self.problem, self.state, self.at)
        self.at += 1
        last = self.at == self.problem.steps
        x = self.solver.finish(self.problem, self.state) if last else self.state.x
        self.handed = x.to(sample.dtype)
        return self.handed


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def shifted(t: Tensor, shift: float) -> Tensor:
    """Times moved towards noise (Esser et al., 2024, Eq. 23)."""
    return shift * t / (1.0 + (shift - 1.0) * t)


def _leading(n: int, steps: int, offset: int) -> Tensor:
    return (torch.arange(steps) * (n // steps)).flip(0) + offset


def _linspace(n: int, steps: int, offset: int) -> Tensor:
    return torch.linspace(0, n - 1, steps, dtype=torch.float64).round().flip(0)


def _trailing(n: int, steps: int, offset: int) -> Tensor:
    return torch.arange(steps, 0, -1, dtype=torch.float64).mul(n / steps).round() - 1


_SPACINGS = {"leading": _leading, "linspace": _linspace, "trailing": _trailing}


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else list(value) if isinstance(value, tuple) else value
