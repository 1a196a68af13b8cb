"""Networks by name: a JSON-able config builds a network, and every network knows the config that rebuilds it.

`build({"name": "unet", "channels": 64}, seed=1)` gives a `UNet`; `net.config` is the full config, with every option
explicit. The weights are a pure function of (config, seed): each module draws from a generator of its own, made from
the seed and the module's name, so they depend neither on the global generator nor on the device.
"""

import functools
import inspect
import math
import types
import typing
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tweed.core.random import generator
from tweed.errors import InputError, choose, reject_unknown

_NETS: dict[str, type[nn.Module]] = {}
_Net = TypeVar("_Net", bound=type[nn.Module])


class _NoDraws(TorchFunctionMode):
    """Skips the random initialisation that torch's layers do in their constructors: `initialise` follows anyway."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("uniform_", "normal_", "kaiming_uniform_", "xavier_uniform_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def without_draws() -> TorchFunctionMode:
    """A context in which torch's layers are built without random numbers; for a module that calls `initialise` itself."""
    return _NoDraws()


def register(name: str) -> Callable[[_Net], _Net]:
    """Class decorator: makes a network known as `name` to `build`, and gives it `.config` and a seeded initialisation.

    The options are the parameters of the class's `__init__`, which must be annotated with plain types (`int`, `float`,
    `bool`, `str`, `Literal`, `Sequence` of these, and unions). Constructing the class directly is the same as
    `build` with `seed=0`.

    Raises:
        InputError: `name` is taken.
    """

    def decorate(cls: _Net) -> _Net:
        if name in _NETS:
            raise InputError(f"name: {name!r} is already registered, by {_NETS[name].__qualname__}")
        construct: Any = cls.__init__
        signature = inspect.signature(construct)

        @functools.wraps(construct)
        def init(self: nn.Module, *args: Any, **options: Any) -> None:
            bound = signature.bind(self, *args, **options)
            bound.apply_defaults()
            with _NoDraws():
                construct(self, *args, **options)
            if type(self) is cls:  # a subclass that is registered too does this itself, once, under its own name
                given = list(bound.arguments.items())[1:]
                self.config = {"name": name, **{key: _plain(value) for key, value in given}}  # type: ignore[assignment]
            initialise(self, 0)

        cls.__init__ = init  # type: ignore[method-assign]
        _NETS[name] = cls
        return cls

    return decorate


def names() -> list[str]:
    """The names that `build` knows, sorted."""
    return sorted(_NETS)


def build(config: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """The network that `config` describes, on the current default device, with weights drawn from `seed`.

    Args:
        config: `{"name": ..., option: value, ...}` of plain JSON values; options left out take their defaults.
        seed: any integer. The global generator is neither read nor moved.

    Raises:
        InputError: the name or an option is unknown (the nearest known one is suggested), a required option is
            missing, or a value is of a wrong type.
    """
    if not isinstance(config, Mapping) or not isinstance(config.get("name"), str):
        raise InputError(
            f"config: {config!r} was given; expected a mapping with a 'name', one of: {', '.join(names())}"
        )
    cls = choose("config name", config["name"], _NETS)
    options = {key: value for key, value in config.items() if key != "name"}
    known = {key: p for key, p in inspect.signature(cls.__init__).parameters.items() if key != "self"}
    reject_unknown(f"option of {config['name']!r}", options, known)
    hints = typing.get_type_hints(cls.__init__)
    for key, value in options.items():
        if not _accepts(value, hints[key]):
            expected = getattr(hints[key], "__name__", None) if isinstance(hints[key], type) else str(hints[key])
            shown = str(expected).replace("typing.", "").replace("collections.abc.", "")
            raise InputError(f"option {key!r} of {config['name']!r}: {value!r} was given; expected {shown}")
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in options:
            raise InputError(f"option {key!r} of {config['name']!r} is missing; expected {hints[key]}")
    net = cls(**options)
    if seed != 0:
        initialise(net, seed)
    return net


def _accepts(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_accepts(value, option) for option in typing.get_args(hint))
    if origin is typing.Literal:
        return any(type(value) is type(option) and value == option for option in typing.get_args(hint))
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return isinstance(value, list | tuple) and all(_accepts(item, typing.get_args(hint)[0]) for item in value)
    if hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def zero(module: nn.Module) -> nn.Module:
    """Marks a linear or convolution layer: `initialise` sets its weight and bias to zero."""
    module.zero_init = True  # type: ignore[assignment]
    return module


@torch.no_grad()
def initialise(net: nn.Module, seed: int) -> None:
    """Draws all weights of `net` anew, in place, from `seed`.

    Linear and convolution layers get the uniform law of variance 1 / (3 fan_in) (torch's default) or zeros where
    `zero` marked them, recurrent layers the uniform law on +-1 / sqrt(hidden size), embeddings a normal of standard
    deviation 0.02, norms ones and zeros. A module with a method `reset(generator)` initialises its own direct parameters
    and buffers. Meta tensors are left alone.
    """
    for name, module in net.named_modules():
        if any(p.is_meta for p in module.parameters(recurse=False)):
            continue
        draws = generator(seed, zlib.crc32(name.encode()))
        if hasattr(module, "reset"):
            module.reset(draws)  # type: ignore[operator]
        elif isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            bound = 0.0 if getattr(module, "zero_init", False) else 1 / math.sqrt(max(module.weight[0].numel(), 1))
            for parameter in (module.weight, module.bias):
                if parameter is not None:
                    fill(parameter, torch.rand(parameter.shape, generator=draws, device="cpu") * (2 * bound) - bound)
        elif isinstance(module, nn.RNNBase):
            bound = 1 / math.sqrt(max(module.hidden_size, 1))
            for parameter in module.parameters(recurse=False):
                fill(parameter, torch.rand(parameter.shape, generator=draws, device="cpu") * (2 * bound) - bound)
        elif isinstance(module, nn.Embedding):
            fill(module.weight, torch.randn(module.weight.shape, generator=draws, device="cpu") * 0.02)


def fill(target: Tensor, values: Tensor) -> None:
    """Copies `values`, made on the CPU, into `target` wherever it lives; a meta tensor is left alone."""
    if not target.is_meta:
        target.copy_(values)
