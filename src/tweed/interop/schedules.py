"""What a diffusers scheduler's configuration says of a model: its process, its target, and how it is told of time."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from tweed.core import grids, targets
from tweed.core.processes import EDM, FromBetas, Process, RectifiedFlow
from tweed.core.targets import Target
from tweed.errors import InputError, choose

_TARGETS = {"epsilon": targets.Noise(), "sample": targets.Data(), "v_prediction": targets.V()}
_SIGMOID = 6.0  # betas along a sigmoid from -6 to 6
_LABELS = 1000.0  # flow models are told 1000 t


@dataclass(frozen=True)
class Schedule:
    """The process and target of a model, and how its network is told of time.

    Attributes:
        time: as in `NetworkDenoiser`: "index", "time" or "c_noise".
        time_scale: what the network's time is multiplied by.
        shift: of the grid that the model is sampled on (see `tweed.grids.uniform`), 1 for none.
        dynamic_shift: the logarithm of the shift at the smallest and the largest number of tokens, and these numbers, where
            the shift depends on the size of the picture.
    """

    process: Process
    target: Target
    time: str
    time_scale: float = 1.0
    shift: float = 1.0
    dynamic_shift: tuple[float, float, int, int] | None = None

    def grid(self, tokens: int | None = None) -> Any:
        """The grid function that the model is usually sampled on.

        Args:
            tokens: how many patches a picture has, for a shift that depends on it.
        """
        if isinstance(self.process, EDM):
            return grids.karras
        shift = self.shift
        if self.dynamic_shift is not None and tokens is not None:
            low, high, few, many = self.dynamic_shift
            shift = math.exp(low + (high - low) * (tokens - few) / (many - few))
        return partial(grids.uniform, shift=shift)


def configuration(scheduler: Any) -> dict[str, Any]:
    """The configuration of a diffusers scheduler, or one that is given, with the name of its class; of a
    `DiffusersScheduler` that of the one it is like.
    """
    if isinstance(scheduler, Mapping):
        told = dict(scheduler)
    else:
        told = {**scheduler.config, "_class_name": type(scheduler).__name__}
    return dict(told["like"]) if "like" in told else told


def read_schedule(config: Mapping[str, Any]) -> Schedule:
    """The schedule of a `scheduler_config.json`, or of a scheduler's `.config`.

    Betas of any kind that diffusers knows (linear, scaled linear, squared cosine, sigmoid, given ones; zero terminal SNR) with
    noise, data or v prediction; flow matching with a fixed or dynamic shift; EDM. Which solver the scheduler is does
    not matter.

    Raises:
        InputError: a kind that is not known, or a configuration without any.
    """
    name = str(config.get("_class_name", ""))
    prediction = config.get("prediction_type") or "epsilon"
    if "FlowMatch" in name or config.get("use_flow_sigmas") or prediction == "flow_prediction":
        return _flow(config)
    if "EDM" in name:
        if prediction != "epsilon":
            raise InputError(f"prediction_type: {prediction!r} of an EDM scheduler was given; expected 'epsilon'")
        process = EDM(config.get("sigma_min", 0.002), config.get("sigma_max", 80.0))
        return Schedule(process, targets.EDM(config.get("sigma_data", 0.5)), "c_noise")
    target = choose("prediction_type", prediction, _TARGETS)
    return Schedule(FromBetas(_betas(config), bool(config.get("rescale_betas_zero_snr"))), target, "index")


def _betas(config: Mapping[str, Any]) -> torch.Tensor | tuple[float, ...]:
    if config.get("trained_betas") is not None:
        return torch.as_tensor(config["trained_betas"], dtype=torch.float64)
    kind = config.get("beta_schedule")
    if kind is None:
        raise InputError(
            f"config: {sorted(config)} were given; expected the configuration of a diffusers scheduler (beta_schedule, "
            "trained_betas, a flow-matching or an EDM scheduler)"
        )
    steps = int(config.get("num_train_timesteps", 1000))
    first, last = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
    known = {
        "linear": lambda: FromBetas.linear(steps, first, last).betas,
        "scaled_linear": lambda: FromBetas.scaled_linear(steps, first, last).betas,
        "squaredcos_cap_v2": lambda: FromBetas.cosine(steps).betas,
        "sigmoid": lambda: first + (last - first) * torch.linspace(-_SIGMOID, _SIGMOID, steps).double().sigmoid(),
    }
    return choose("beta_schedule", kind, known)()


def _flow(config: Mapping[str, Any]) -> Schedule:
    shift = float(config.get("shift") or config.get("flow_shift") or 1.0)
    dynamic = None
    if config.get("use_dynamic_shifting"):
        if config.get("time_shift_type", "exponential") != "exponential":
            raise InputError(f"time_shift_type: {config['time_shift_type']!r} was given; expected 'exponential'")
        dynamic = (
            float(config.get("base_shift", 0.5)),
            float(config.get("max_shift", 1.15)),
            int(config.get("base_image_seq_len", 256)),
            int(config.get("max_image_seq_len", 4096)),
        )
    return Schedule(RectifiedFlow(), targets.Velocity(), "time", _LABELS, shift, dynamic)
