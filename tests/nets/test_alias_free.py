"""Alias-free resampling: symmetry and sums of the kernels, band-limited images there and back, shifts, and cost in parameters."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tweed import nets
from tweed.core.random import normal
from tweed.errors import InputError
from tweed.nets.alias_free import AliasFreeActivation, AliasFreeDown, AliasFreeUp, low_pass_kernel

F64 = torch.float64
UNET = {"name": "unet", "in_channels": 1, "channels": 8, "multipliers": [1, 2], "blocks": 1, "groups": 4, "heads": 1}


def natural(n=16, size=32, limit=None):
    """Images with a spectrum 1/f, cut at `limit` cycles a pixel."""
    f = torch.fft.fftfreq(size, dtype=F64)
    radius = (f[:, None] ** 2 + f**2).sqrt()
    weight = torch.where(radius > 0, 1.0 / radius.clamp_min(1e-9), torch.zeros_like(radius))
    if limit is not None:
        weight = weight * ((f.abs()[:, None] < limit) & (f.abs() < limit))
    spectrum = torch.fft.fft2(normal((n, 1, size, size), 3, dtype=F64)) * weight
    return torch.fft.ifft2(spectrum).real


def shift_error(operator, x):
    moved = operator(x.roll(1, -1))
    still = operator(x)
    return ((moved - still.roll(1, -1)).square().sum() / still.square().sum()).sqrt().item()


@pytest.mark.parametrize("size", [3, 7, 11])
@pytest.mark.parametrize("beta", [0.0, 2.0])
def test_kernels(size, beta):
    kernel = low_pass_kernel(size, beta=beta)
    assert kernel.sum().item() == pytest.approx(1.0)
    torch.testing.assert_close(kernel, kernel.rot90())
    torch.testing.assert_close(kernel, kernel.flip(0))
    bare = low_pass_kernel(size, 0.7, 0.0, normalise=False)
    assert bare[size // 2, size // 2].item() == pytest.approx(0.49 / (4 * math.pi))
    line = low_pass_kernel(size, 0.7, 0.0, normalise=False, dims=1)
    assert line[size // 2].item() == pytest.approx(0.7 / math.pi)
    assert line[size // 2 + 1].item() == pytest.approx(math.sin(0.7) / math.pi)


@pytest.mark.parametrize("dims", [1, 2])
def test_constants_pass_and_the_official_gain_quarters_them(dims):
    ones = torch.ones(2, 3, *[8] * dims)
    torch.testing.assert_close(AliasFreeDown(dims)(ones), torch.ones(2, 3, *[4] * dims))
    inner = (..., *[slice(4, -4)] * dims)
    up = AliasFreeUp(dims, padding="circular")(ones)
    assert up.shape[2:] == (16,) * dims
    assert (up[inner].mean() - 1).abs() < 1e-5
    assert (up[inner] - 1).abs().max() < 0.05  # the rest of the images of the spectrum
    torch.testing.assert_close(AliasFreeUp(dims, gain=1.0, padding="circular")(ones), up / 2.0**dims)
    assert AliasFreeDown(dims)(ones[:0]).shape == (0, 3, *[4] * dims)


def test_a_band_limited_image_comes_back():
    x = natural(limit=0.08)
    up, down = AliasFreeUp(size=11, padding="circular").double(), AliasFreeDown(size=11, padding="circular").double()
    assert ((down(up(x)) - x).norm() / x.norm()).item() < 0.02
    assert ((AliasFreeActivation(nn.Identity(), size=11, padding="circular").double()(x) - x).norm() / x.norm()) < 0.02


def test_shifts_by_a_pixel_are_felt_less_and_by_two_hardly_at_all():
    def made(size, beta):
        down = AliasFreeDown(size=size, beta=beta, padding="circular").double()
        up = AliasFreeUp(size=size, beta=beta, padding="circular").double()
        return lambda x: up(down(x))

    x = natural(64)
    plain = shift_error(lambda x: F.interpolate(F.max_pool2d(x, 2), scale_factor=2.0, mode="bilinear"), x)
    assert shift_error(made(7, 2.0), x) < 0.5 * plain
    # The published three taps with a narrow window are worse than the plain operations.
    assert shift_error(made(3, 2.0), x) > plain
    ours = made(7, 2.0)
    torch.testing.assert_close(ours(x.roll(2, -1)), ours(x).roll(2, -1))


def test_what_half_the_resolution_cannot_hold_is_filtered():
    wave = torch.cos(2 * math.pi * 0.4 * torch.arange(40, dtype=F64)).expand(1, 1, 40, 40)
    kept = AliasFreeDown(size=11, padding="circular").double()(wave).norm()
    assert kept < 0.1 * wave[..., ::2, ::2].norm()


def test_a_filtered_nonlinearity_feels_a_shift_of_half_a_pixel_less():
    x = natural(16, limit=0.2)
    f = torch.fft.fftfreq(32, dtype=F64)
    half = torch.polar(torch.ones_like(f), -math.pi * f)

    def shifted(y):
        return torch.fft.ifft2(torch.fft.fft2(y) * half).real

    def error(act):
        return ((act(shifted(x)) - shifted(act(x))).norm() / act(x).norm()).item()

    filtered = AliasFreeActivation(nn.ReLU(), size=11, padding="circular").double()
    assert error(filtered) < 0.5 * error(torch.relu)


@pytest.mark.parametrize("dims", [1, 2])
def test_networks_with_filters_have_no_more_parameters_and_feel_shifts_less(dims):
    def net(**options):
        made = nets.build({**UNET, "dims": dims, **options}, 1)
        with torch.no_grad():
            for i, p in enumerate(made.parameters()):
                p += 0.1 * normal((1, *p.shape), 7, draw=i)[0]
        return made.eval()

    pool, filters = net(resample="pool"), net(resample="alias-free")
    both = net(resample="alias-free", filtered_activations=True)
    assert list(pool.state_dict()) == list(filters.state_dict()) == list(both.state_dict())
    x = natural(8).float()
    x = x / x.std()
    x = x if dims == 2 else x[:, :, 0]
    t = torch.full((8,), 0.3)

    def felt(network):
        with torch.no_grad():
            still, moved = network(x, t), network(x.roll(1, -1), t)
        inside = (..., *[slice(6, -6)] * dims)
        return ((moved - still.roll(1, -1))[inside].norm() / still[inside].norm()).item()

    assert felt(filters) < 0.85 * felt(pool)
    assert felt(both) < 0.85 * felt(pool)


def test_arguments_out_of_range():
    for wrong in ({"size": 4}, {"cutoff": 4.0}, {"beta": -1.0}):
        with pytest.raises(InputError):
            low_pass_kernel(**wrong)
    with pytest.raises(InputError, match="padding"):
        AliasFreeDown(padding="mirror")
    with pytest.raises(InputError, match="resample"):
        nets.build({**UNET, "resample": "bicubic"})
