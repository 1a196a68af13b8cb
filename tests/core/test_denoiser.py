"""Denoisers around networks: what the network is given, and what its answer becomes."""

import math

import pytest
import torch
from process_cases import ENDPOINT, GAUSSIAN
from torch import nn

import tweed as tw
from tweed import processes, targets
from tweed.errors import IncompatibleError, InputError


class Spy(nn.Module):
    """Remembers what it was called with; answers with its input."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=dtype))

    def forward(self, x, t, **cond):
        self.x, self.t, self.cond = x, t, cond
        return x * self.weight


def spied(process=None, target=None, dtype=torch.float32, **options):
    spy = Spy(dtype)
    return spy, tw.NetworkDenoiser(spy, process or processes.VP(), target or targets.Noise(), **options)


@pytest.mark.parametrize("process", (GAUSSIAN | ENDPOINT).values(), ids=(GAUSSIAN | ENDPOINT).keys())
@pytest.mark.parametrize("time", ["time", "log_snr", "c_noise"])
def test_time_inputs(process, time):
    spy, denoiser = spied(process, time=time)
    x, y = torch.randn(3, 4), torch.randn(3, 4)
    ends = {} if process.endpoint == "none" else {"y": y}
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    expected = {"time": t, "log_snr": process.log_snr(t), "c_noise": (process.sigma(t) / process.alpha(t)).log() / 4}[
        time
    ]
    denoiser(x, t, **ends)
    assert spy.t.dtype == torch.float32
    torch.testing.assert_close(spy.t, expected.float(), rtol=1e-6, atol=1e-6)
    for number in (0.5, torch.tensor(0.5), torch.tensor([0.5])):
        denoiser(x, number, **ends)
        torch.testing.assert_close(spy.t, expected[1].float().expand(3), rtol=1e-6, atol=1e-6)


def test_index_is_the_training_step():
    process = processes.FromBetas.linear(1000)
    spy, denoiser = spied(process, time="index")
    n = torch.tensor([0, 1, 499, 999])
    denoiser(torch.randn(4, 2), (n + 1) / 1000)
    torch.testing.assert_close(spy.t, n.float(), rtol=1e-6, atol=1e-4)
    denoiser(torch.randn(2, 2), 1.0)
    assert spy.t.tolist() == [999.0, 999.0]
    _, other = spied(processes.VP(), time="index")
    with pytest.raises(IncompatibleError, match="time: 'index' needs a FromBetas process; VP"):
        other(torch.randn(2, 2), 0.5)


def test_times_of_tokens_reach_the_network():
    spy, denoiser = spied()
    x = torch.randn(3, 5, 2)
    t = torch.rand(3, 5)
    estimate = denoiser(x, t)
    torch.testing.assert_close(spy.t, t)
    denoiser(x, t[:1])
    torch.testing.assert_close(spy.t, t[:1].expand(3, 5))
    one = denoiser(x[:, 2:3], t[:, 2])
    torch.testing.assert_close(estimate.x0[:, 2:3], one.x0)


@pytest.mark.parametrize("t", [0.3, torch.tensor([0.1, 0.4, 0.9]), torch.tensor([[0.1, 0.9]] * 3)])
def test_unit_scaling_divides_by_the_standard_deviation(t):
    spy, denoiser = spied(processes.SubVP(), input_scale="unit", data_std=0.7)
    x = torch.randn(3, 2, 4)
    denoiser(x, t)
    time = torch.as_tensor(t, dtype=torch.float64)
    std = (processes.SubVP().sigma(time) ** 2 + (0.7 * processes.SubVP().alpha(time)) ** 2).sqrt()
    torch.testing.assert_close(spy.x, (x.double() / std.reshape(std.shape + (1,) * (3 - std.ndim))).float())


@pytest.mark.parametrize("time", [0.01, 0.2, torch.tensor([0.001, 0.01, 0.1, 1.0], dtype=torch.float64)])
def test_edm_preconditioning_is_the_published_one(time):
    def network(x, t):
        return torch.sin(3 * x) + t[:, None]

    process, d = processes.EDM(), 0.5
    denoiser = tw.NetworkDenoiser(network, process, targets.EDM(d))
    x = torch.randn(4, 6, dtype=torch.float64) * 3
    s = 80.0 * torch.as_tensor(time, dtype=torch.float64).expand(4)[:, None]
    c_skip, c_out = d**2 / (s**2 + d**2), s * d / (s**2 + d**2).sqrt()
    c_in, c_noise = 1 / (s**2 + d**2).sqrt(), s.log()[:, 0] / 4
    published = c_skip * x + c_out * network(c_in * x, c_noise.float())
    torch.testing.assert_close(denoiser(x, time).x0, published, rtol=1e-9, atol=1e-9)


def test_an_edm_network_gives_the_same_data_on_every_process_at_one_noise_level():
    def network(x, t):
        return torch.cos(x) * t[:, None]

    clean, noise, s = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64), 0.8
    answers = []
    for process in (processes.EDM(), processes.VP(), processes.RectifiedFlow(), processes.Cosine()):
        t = process.time(-math.log(s)).item()
        answers.append(tw.NetworkDenoiser(network, process, targets.EDM())(process.perturb(clean, t, noise), t).x0)
    for other in answers[1:]:
        torch.testing.assert_close(other, answers[0], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_network_is_called_in_its_own_type(dtype):
    spy, denoiser = spied(dtype=dtype)
    estimate = denoiser(torch.randn(3, 4), 0.4)
    assert spy.x.dtype == dtype
    assert spy.t.dtype == torch.float32
    assert estimate.answer.dtype == dtype
    assert estimate.x.dtype == torch.float32
    assert estimate.x0.dtype == torch.float32
    assert denoiser(torch.randn(3, 4, dtype=torch.float64), 0.4).x0.dtype == torch.float64
    assert denoiser(torch.randn(3, 4).bfloat16(), 0.4).x0.dtype == torch.float32


def test_moving_the_denoiser_moves_the_type():
    spy, denoiser = spied()
    denoiser.to(torch.bfloat16)
    denoiser(torch.randn(3, 4), 0.4)
    assert spy.x.dtype == torch.bfloat16
    denoiser.double()
    denoiser(torch.randn(3, 4), torch.tensor(0.4))
    assert spy.x.dtype == torch.float64


def test_conditions_reach_the_network():
    spy, denoiser = spied(processes.OUVE())
    x, y, label = torch.randn(2, 3), torch.randn(2, 3), torch.tensor([1, 2])
    estimate = denoiser(x, 0.4, y=y, label=label, drop=None)
    assert spy.cond["y"] is y
    assert spy.cond["label"] is label
    assert spy.cond["drop"] is None
    assert estimate.y is y


def test_complex_states_pass():
    denoiser = tw.NetworkDenoiser(lambda x, t, y: x - y, processes.OUVE(), targets.Noise())
    x, y = torch.randn(2, 3, dtype=torch.complex64), torch.randn(2, 3, dtype=torch.complex64)
    estimate = denoiser(x, 0.4, y=y)
    level = processes.OUVE().level(0.4)
    torch.testing.assert_close(estimate.x0, (x - level.beta * y - level.sigma * (x - y)) / level.alpha)


def test_gradients_pass_through():
    spy, denoiser = spied()
    x = torch.randn(2, 3, requires_grad=True)
    denoiser(x, 0.4).x0.sum().backward()
    level = processes.VP().level(0.4)
    torch.testing.assert_close(x.grad, torch.full_like(x, (1 - level.sigma) / level.alpha))
    assert spy.weight.grad is not None


def test_an_empty_batch_passes():
    _, denoiser = spied(input_scale="unit")
    for t in (0.4, torch.zeros(0), torch.tensor(0.4)):
        assert denoiser(torch.zeros(0, 3), t).x0.shape == (0, 3)


@pytest.mark.parametrize(
    ("network", "got"),
    [
        (lambda x, t: x[:, :1], r"\(2, 1\)"),
        (lambda x, t: x[None], r"\(1, 2, 3\)"),
        (lambda x, t: (x,), "tuple"),
        (lambda x, t: None, "NoneType"),
    ],
)
def test_a_wrong_answer_is_named(network, got):
    denoiser = tw.NetworkDenoiser(network, processes.VP(), targets.Noise())
    with pytest.raises(InputError, match=f"network: its answer is {got}; expected .* shape .2, 3"):
        denoiser(torch.zeros(2, 3), 0.5)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: tw.NetworkDenoiser(Spy(), processes.VP(), targets.Noise(), time="lambda"), "time: 'lambda'"),
        (lambda: tw.NetworkDenoiser(Spy(), processes.VP(), targets.Noise(), input_scale="std"), "input_scale: 'std'"),
        (lambda: tw.NetworkDenoiser(Spy(), processes.VP, targets.Noise()), "process: .* expected a tweed process"),
        (lambda: tw.NetworkDenoiser(Spy(), "VP", targets.Noise()), "process: 'VP'"),
        (lambda: tw.NetworkDenoiser(Spy(), processes.VP(), targets.Noise), "target: .* expected a tweed target"),
        (lambda: tw.NetworkDenoiser(Spy(), processes.VP(), "eps"), "target: 'eps'"),
        (lambda: tw.NetworkDenoiser(Spy(), processes.Interpolant(), targets.Noise()), "target: Noise on a two-sided"),
        (lambda: tw.CountingDenoiser(Spy()), "denoiser: Spy was given"),
        (lambda: tw.InterpolantDenoiser(Spy(), None, processes.Interpolant(one_sided=True)), "process: a one-sided"),
    ],
)
def test_bad_input_is_named(build, named):
    with pytest.raises(InputError, match=named):
        build()


def test_a_time_outside_is_refused():
    _, denoiser = spied()
    for t in (-0.1, 1.1, math.nan):
        with pytest.raises(InputError, match="t:"):
            denoiser(torch.zeros(1, 2), t)
    with pytest.raises(InputError, match="t: shape"):
        _ = denoiser(torch.zeros(4, 2), torch.rand(4, 3, 1, 1)).x0


def test_t_max_stops_where_the_answer_or_the_label_is_not_finite():
    flow = processes.RectifiedFlow()
    assert spied(flow, targets.Noise())[1].t_max == flow.t_max
    assert spied(flow, targets.Velocity())[1].t_max == 1.0
    assert spied(flow, targets.Velocity(), time="log_snr")[1].t_max == flow.t_max
    assert spied(flow, targets.EDM())[1].t_max == flow.t_max
    assert spied(flow, targets.EDM(), time="time")[1].t_max == 1.0
    assert spied(processes.VP(), targets.Noise(), time="log_snr")[1].t_max == 1.0
    assert spied(processes.EDM(), targets.EDM())[1].t_max == 1.0


def test_function_denoiser_passes_everything_as_given():
    seen = {}

    def function(x, t, **cond):
        seen.update(t=t, **cond)
        return 2 * x

    denoiser = tw.FunctionDenoiser(function, processes.VP(), event=(3,))
    x = torch.randn(2, 3)
    assert torch.equal(denoiser(x, 0.25, label=None).x0, 2 * x)
    assert seen == {"t": 0.25, "label": None}
    assert denoiser.event == (3,)
    noise = tw.FunctionDenoiser(function, processes.VP(), targets.Noise())
    assert torch.equal(noise(x, 0.25).eps, 2 * x)


class Remembering(tw.Wrapper):
    """Remembers its calls along one run."""

    def __init__(self, denoiser):
        super().__init__(denoiser)
        self.calls = 0

    def start(self):
        return Remembering(self.denoiser.start())

    def forward(self, x, t, **cond):
        self.calls += 1
        return self.denoiser(x, t, **cond)


def test_wrappers_stack_and_counting_counts_across_runs():
    _, plain = spied(event=(3,))
    remembering = Remembering(plain)
    counter = tw.CountingDenoiser(remembering)
    assert counter.process is plain.process
    assert counter.event == (3,)
    assert counter.t_max == plain.t_max
    assert plain.start() is plain
    assert tw.CountingDenoiser(plain).start() is not None
    for run in range(2):
        fresh = counter.start()
        # A memory inside starts anew with every run, and is not left behind in the original.
        assert fresh.denoiser is not remembering
        assert fresh.denoiser.calls == 0
        for _ in range(3):
            fresh(torch.zeros(5, 3), 0.5)
        assert fresh.denoiser.calls == 3
        assert remembering.calls == 0
        assert counter.denoiser is remembering
        assert counter.evaluations == 3 * (run + 1)
        assert counter.samples == 15 * (run + 1)
    assert tw.CountingDenoiser(plain).evaluations == 0


def test_interpolant_denoiser_holds_two_fields():
    process = processes.Interpolant("linear", "brownian")
    seen = []

    def velocity(x, t, **cond):
        seen.append(t)
        return 2 * x

    denoiser = tw.InterpolantDenoiser(velocity, lambda x, t, **cond: 3 * x, process)
    x = torch.randn(4, 2)
    estimate = denoiser(x, 0.3)
    assert seen[0].shape == (4,)
    assert seen[0].dtype == torch.float32
    assert torch.equal(estimate.velocity, 2 * x)
    assert torch.equal(estimate.eps, 3 * x)
    torch.testing.assert_close(estimate.score, -3 * x / process.level(0.3).sigma)
    bare = tw.InterpolantDenoiser(velocity, None, process)
    assert torch.equal(bare(x, torch.rand(4)).velocity, 2 * x)
    with pytest.raises(IncompatibleError):
        _ = bare(x, 0.3).score


def test_a_velocity_network_on_a_two_sided_interpolant():
    process = processes.Interpolant()
    denoiser = tw.NetworkDenoiser(lambda x, t, **cond: 2 * x, process, targets.Velocity())
    x, y = torch.randn(4, 2), torch.randn(4, 2)
    assert torch.equal(denoiser(x, 0.3).velocity, 2 * x)
    with pytest.raises(IncompatibleError):
        _ = denoiser(x, 0.3).x0
    # With its end given (a paired interpolant) the data follows.
    paired = processes.Interpolant("linear", "brownian")
    estimate = tw.NetworkDenoiser(lambda x, t, **cond: 2 * x, paired, targets.Velocity())(x, 0.3, y=y)
    level = paired.level(0.3)
    position, speed = x - level.beta * y, 2 * x - level.beta_dot * y
    determinant = level.alpha * level.sigma_dot - level.sigma * level.alpha_dot
    torch.testing.assert_close(estimate.x0, (level.sigma_dot * position - level.sigma * speed) / determinant)


def test_device_is_that_of_the_first_tensor_held():
    assert spied()[1].device == torch.device("cpu")
    assert tw.FunctionDenoiser(lambda x, t: x, processes.VP()).device == torch.device("cpu")
    meta = tw.MixtureDenoiser(torch.randn(2, 3), 1.0).to("meta")
    assert meta.device == torch.device("meta")


def test_what_is_kept_by_time_is_bounded(monkeypatch):
    monkeypatch.setattr("tweed.core.denoiser._KEPT_TIMES", 8)
    denoiser = tw.NetworkDenoiser(lambda x, t: x * t[:, None], tw.processes.VP(), tw.targets.Data(), input_scale="unit")
    x = torch.ones(2, 3)
    first = denoiser(x, 0.25).x0
    for i in range(50):
        denoiser(x, (i + 1) / 60)
    assert max(len(denoiser._numbers), len(denoiser._labels), len(denoiser._scales)) <= 9
    torch.testing.assert_close(denoiser(x, 0.25).x0, first)
