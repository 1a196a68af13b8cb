"""The recipes of training and architecture at the smallest scale, and that wrong ingredients are found out."""

import pytest
import torch

from tweed.core import random, targets
from tweed.recipes import _flatness as flatness
from tweed.recipes import alias_free, denoising_task_routing, dual_adam, k_diff, scale_long, silent
from tweed.recipes.registry import reproduce

FIGURES = {
    "dual-adam": {"escape.png"},
    "k-diff": {"targets.png"},
    "scale-long": {"start.png"},
    "alias-free": {"resampling.png"},
    "denoising-task-routing": set(),
}


def failed(rows):
    return {row.quantity for row in rows if row.holds is False}


@pytest.mark.parametrize("slug", FIGURES)
def test_every_relation_holds_and_is_written(slug, tmp_path):
    report = reproduce(slug, seed=3, scale="smoke")
    assert report.holds, [(row.quantity, row.here, row.baseline) for row in report.failed]
    assert {path.name for path in report.write(tmp_path).iterdir()} == FIGURES[slug] | {"report.json", "report.md"}


def test_an_inverse_step_that_divides_is_found_out(monkeypatch):
    monkeypatch.setitem(dual_adam.OPTIMIZERS, "InvAdam", torch.optim.Adam)
    right = dual_adam.escape_rates
    monkeypatch.setattr(dual_adam, "escape_rates", lambda *a: right(*a, steps=600))
    assert "... InvAdam over Adam" in failed(dual_adam._escapes(0, 500, silent)[0])


def test_a_target_of_the_wrong_sign_is_found_out(monkeypatch):
    right = targets.K.row
    monkeypatch.setattr(
        targets.K, "row", lambda self, process, t: right(self, process, t)._replace(noise=1.0 - self.k + 0 * t)
    )
    assert "data, noise, velocity from every k: off the truth" in failed(k_diff._conversions(0))


def test_skips_damped_from_the_wrong_end_are_found_out(monkeypatch):
    monkeypatch.setattr(
        scale_long, "constant_skip_coefficients", lambda n, kappa: [kappa**i for i in reversed(range(n))]
    )
    assert failed(scale_long._coefficients()) == {"coefficients from the outermost skip to the innermost"}
    found = {kappa: {depth: scale_long.at_start(depth, 1.0, 3, 1) for depth in (4, 12)} for kappa in (1.0, 0.7)}
    assert len(failed(scale_long._start_rows(found))) == 4


def test_filters_that_are_left_out_are_found_out(monkeypatch):
    class Bare(alias_free.AliasFreeDown):
        def forward(self, x):
            return x[..., ::2, ::2]

    monkeypatch.setattr(alias_free, "AliasFreeDown", Bare)
    assert {
        "shift by one pixel: 7 taps, against maxima and interpolation",
        "a wave of 0.4 cycles a pixel: what aliases, of all",
    } <= failed(alias_free._resampling(1, 16)[1])


def test_turns_that_go_the_other_way_are_found_out(monkeypatch):
    assert alias_free._rotation_row(0).holds
    right = alias_free.rotating
    monkeypatch.setattr(alias_free, "rotating", lambda angle, steps: right(-angle, steps))
    assert not alias_free._rotation_row(0).holds


def test_windows_that_slide_from_the_noise_are_found_out(monkeypatch):
    assert not failed(denoising_task_routing._masks())

    class Reversed(denoising_task_routing.ChannelRouting):
        def forward(self, t):
            return super().forward(1.0 - t)

    monkeypatch.setattr(denoising_task_routing, "ChannelRouting", Reversed)
    assert "offset of the window: off round((C - active) t^4)" in failed(denoising_task_routing._masks())


def test_masks_that_lose_what_they_hide_are_found_out(monkeypatch):
    settings = denoising_task_routing.Settings(hidden=16, blocks=2)
    assert not failed(denoising_task_routing._block(settings, 0))
    # A network that starts anywhere else, and one with more parameters.
    right = denoising_task_routing._network

    def other(settings, way, seed, zero_init=True):
        net = right(settings, way, seed, zero_init)
        if way == "windows":
            net.more = torch.nn.Parameter(torch.zeros(3))
            net.input.weight.data.mul_(0.5)
        return net

    monkeypatch.setattr(denoising_task_routing, "_network", other)
    assert failed(denoising_task_routing._block(settings, 0)) == {
        "blocks that write nothing: routed off plain",
        "parameters are those of plain",
    }


class TestFlatness:
    """What the classifiers are measured by."""

    def test_runs_do_not_feel_one_another(self):
        sizes = flatness.Sizes(5, 8, 2, 3)
        x, label = random.uniform((2, 30, 64), 8), torch.arange(60).reshape(2, 30) % 10
        weights = flatness.initial(2, 1)
        both = flatness.train(weights, flatness.optimizers(sizes)["DualAdam"], 1e-2, x, label, sizes, 4)
        # Another second run: the first is as it was.
        other = flatness.train(weights, flatness.optimizers(sizes)["DualAdam"], 1e-2, x.flip(0), label, sizes, 4)
        mixed = torch.stack((x[0], 1.0 - x[1]))
        again = flatness.train(weights, flatness.optimizers(sizes)["DualAdam"], 1e-2, mixed, label, sizes, 4)
        for a, b, c in zip(both, again, other, strict=True):
            torch.testing.assert_close(a[0], b[0], rtol=0, atol=1e-7)
            assert (a[1] - b[1]).abs().max() > 1e-5
            assert (a[0] - c[0]).abs().max() > 1e-5

    def test_sharpness_is_the_trace_of_the_curvature_of_a_quadratic(self, monkeypatch):
        # Of sum(h w^2) / 2 the mean rise under w + s |w| z / |z| is s^2 |w|^2 mean(h) / 2.
        h = torch.linspace(0.0, 2.0, 50)[None, :, None]
        w = torch.full((3, 50, 1), 0.5)
        monkeypatch.setattr(flatness, "losses", lambda weights, x, label: 0.5 * (h * weights[0] ** 2).sum((1, 2)))
        rise = flatness.sharpness([w], torch.zeros(1), torch.zeros(3, 1), 1, size=0.1, draws=4000)
        torch.testing.assert_close(rise, torch.full((3,), 0.5 * 0.01 * 12.5 * 1.0), rtol=0.15, atol=0)
