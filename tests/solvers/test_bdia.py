"""BDIA against its formulas, its inverse, its orders, and on every kind of process."""

import math
from functools import partial

import pytest
import torch
from solver_cases import case, mixture, noisy, run, slope

import tweed as tw
from tweed import processes, random
from tweed.core import grids
from tweed.errors import IncompatibleError, InputError
from tweed.solvers import BDIA, DDIM, DDPM, DPMSolver, Euler, Heun, Problem, RungeKutta

TIMES = (0.95, 0.8, 0.6, 0.35, 0.2, 0.1, 0.02)
GAUSSIAN = [
    processes.VP(),
    processes.Cosine(),
    processes.SubVP(),
    processes.VE(),
    processes.EDM(),
    processes.RectifiedFlow(),
    processes.MeanReverting(),
    processes.OUVE(),
    processes.Residual(),
]
INCREMENTS = [
    BDIA(),
    BDIA(0.9),
    BDIA(0.9, Heun()),
    BDIA(0.8, Heun(), "extrapolated"),
    BDIA(0.95, Euler()),
    BDIA(0.9, RungeKutta("rk4"), "extrapolated"),
    BDIA(0.9, DPMSolver(2, "singlestep"), "extrapolated"),
]


def world(process):
    """The mixture on a process, clean points, and its conditions."""
    denoiser = mixture(process)
    x0 = denoiser.means.repeat(2, 1)[:5] + 0.1 * random.normal((5, 2), 3, dtype=torch.float64)
    cond = {"y": x0 + 0.3} if process.endpoint == "given" else {}
    return denoiser, x0, cond


def ddim(process, z, eps, t, s):
    a, b = process.level(t), process.level(s)
    return b.alpha * (z - a.sigma * eps) / a.alpha + b.sigma * eps


def by_hand(denoiser, z, gamma, times):
    """The paper's loop: all states."""
    process, states = denoiser.process, [z]
    states.append(ddim(process, z, denoiser(z, times[0]).eps, times[0], times[1]))
    for i in range(1, len(times) - 1):
        before, here = states[-2:]
        eps = denoiser(here, times[i]).eps
        back = ddim(process, here, eps, times[i], times[i - 1])
        states.append(gamma * (before - back) + ddim(process, here, eps, times[i], times[i + 1]))
    return states


@pytest.mark.parametrize("process", [processes.VP(), processes.EDM(sigma_max=5.0), processes.RectifiedFlow()], ids=repr)
@pytest.mark.parametrize("gamma", [1.0, 0.6])
def test_it_is_the_rule_of_the_paper(process, gamma):
    denoiser, x = mixture(process), noisy(process, TIMES[0])
    path = tw.sample(denoiser, x, solver=BDIA(gamma), times=TIMES, trajectory=True)
    for found, expected in zip(path, by_hand(denoiser, x, gamma, TIMES), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("gamma", [1.0, 0.6])
def test_it_is_the_rule_in_increments(gamma):
    # z_{i-1} = z_{i+1} - (1 - gamma)(z_{i+1} - z_i) - gamma D(i -> i+1) + D(i -> i-1): the form for any integral.
    denoiser, process = mixture(), processes.VP()
    path = tw.sample(denoiser, noisy(process, TIMES[0]), solver=BDIA(gamma), times=TIMES, trajectory=True)
    for i in range(1, len(TIMES) - 1):
        before, here, after = path[i - 1 : i + 2]
        eps = denoiser(here, TIMES[i]).eps
        up, down = (ddim(process, here, eps, TIMES[i], TIMES[j]) - here for j in (i - 1, i + 1))
        expected = before - (1 - gamma) * (before - here) - gamma * up + down
        torch.testing.assert_close(after, expected, rtol=0, atol=1e-12)


def test_inversion_is_the_rule_read_backwards():
    denoiser, process, gamma = mixture(), processes.VP(), 0.8
    times = TIMES[::-1]
    states = [noisy(process, times[0], seed=2)]
    states.append(ddim(process, states[0], denoiser(states[0], times[0]).eps, times[0], times[1]))
    for i in range(1, len(times) - 1):
        low, here = states[-2:]
        eps = denoiser(here, times[i]).eps
        down, up = (ddim(process, here, eps, times[i], times[j]) for j in (i - 1, i + 1))
        states.append((low - down) / gamma + up)
    pair = tw.invert(denoiser, states[0], solver=BDIA(gamma), times=TIMES)
    torch.testing.assert_close(pair.x, states[-1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pair.partner, states[-2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("increment", [DDIM(), Heun(), Euler()], ids=repr)
def test_little_gamma_is_the_increment_alone(increment):
    denoiser, x = mixture(), noisy(processes.VP(), TIMES[0])
    got = run(BDIA(1e-13, increment), denoiser, TIMES, x)
    torch.testing.assert_close(got, run(increment, denoiser, TIMES, x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("process", GAUSSIAN, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("solver", INCREMENTS, ids=lambda s: f"{s.gamma:g} {type(s.increment).__name__} {s.back}")
def test_round_trips_are_exact_on_every_process(process, solver):
    denoiser, x0, cond = world(process)
    pair = tw.invert(denoiser, x0, solver=solver, steps=12, cond=cond)
    scale = float(pair.x.abs().max()) + 1.0
    back = tw.sample(denoiser, pair, solver=solver, steps=12, cond=cond)
    torch.testing.assert_close(back, x0, rtol=0, atol=1e-10 * scale)
    noise = process.prior(x0.shape, 1, y=cond.get("y"), dtype=torch.float64)
    samples = tw.sample(denoiser, noise, solver=solver, steps=12, cond=cond, return_pair=True)
    found = tw.invert(denoiser, samples, cond=cond)
    torch.testing.assert_close(found.x, noise, rtol=0, atol=1e-8 * float(noise.abs().max()))


@pytest.mark.parametrize("end", [0.0, 1e-3])
@pytest.mark.parametrize("process", [processes.VP(), processes.Cosine(), processes.RectifiedFlow(), processes.EDM()])
def test_grids_may_reach_both_infinite_ends(process, end):
    denoiser, x0, _ = world(process)
    times = grids.uniform(process, 9, end=end)
    pair = tw.invert(denoiser, x0, solver=BDIA(), times=times)
    assert pair.x.isfinite().all()
    torch.testing.assert_close(tw.sample(denoiser, pair), x0, rtol=0, atol=1e-10 * (1 + float(pair.x.abs().max())))


def test_out_of_clean_data_the_first_step_takes_the_noise_seen_ahead():
    process, (denoiser, x0, _) = processes.VP(), world(processes.VP())
    times = (0.4, 0.1, 0.0)
    pair = tw.invert(denoiser, x0, solver=BDIA(), times=times, trajectory=True)
    level = process.level(0.1)
    expected = level.alpha * x0 + level.sigma * denoiser(level.alpha * x0, 0.1).eps
    torch.testing.assert_close(pair[1], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("solver", "grid", "order"),
    [
        (BDIA(), grids.uniform, 2),
        (BDIA(0.5), grids.uniform, 1),
        (BDIA(0.9), grids.uniform, 1),
        (BDIA(0.5, Heun(), "extrapolated"), grids.uniform, 2),
        (BDIA(0.7, Heun("velocity"), "extrapolated"), grids.uniform, 2),
        (BDIA(0.7, DPMSolver(2, "singlestep"), "extrapolated"), grids.log_snr, 2),
        (BDIA(0.5, Heun()), grids.uniform, 1),
        (BDIA(1.0, Euler()), grids.uniform, 2),
    ],
    ids=lambda value: f"{value.gamma:g} {value.increment} {value.back}" if isinstance(value, BDIA) else None,
)
def test_orders(solver, grid, order):
    denoiser, x, exact = case()
    assert slope(solver, denoiser, x, exact, grid, (160, 320)) == pytest.approx(order, abs=0.2)
    assert solver.order == order


def test_the_order_is_second_on_any_grid_where_gamma_matches_its_steps():
    # A step's local error is gamma h_back^2 - h_on^2 in the clock sigma / alpha: on a geometric grid of EDM one gamma
    # makes it vanish, and gamma = 1 does not.
    process = processes.EDM(sigma_max=5.0)
    denoiser, x, exact = case(process)
    grid = partial(grids.log_snr)

    def error(n, gamma):
        return (run(BDIA(gamma), denoiser, grid(process, n, start=0.7, end=0.1), x) - exact).norm().item()

    ratio = {n: math.exp(-2.0 * math.log(7.0) / n) for n in (40, 80)}
    assert math.log2(error(40, ratio[40]) / error(80, ratio[80])) > 1.7
    assert error(80, ratio[80]) < 0.5 * error(80, 1.0)


def test_standard_normal_data_keeps_its_direction():
    denoiser = tw.GaussianDenoiser(torch.zeros(4), torch.ones(4), processes.VP())
    z = random.normal((3, 4), 1, dtype=torch.float64)
    for gamma in (0.5, 1.0):
        ratio = tw.sample(denoiser, z, solver=BDIA(gamma), steps=15) / z
        torch.testing.assert_close(ratio, ratio[:1, :1].expand_as(ratio), rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    "target", [tw.targets.Noise(), tw.targets.V(), tw.targets.Velocity(), tw.targets.EDM(), tw.targets.Score()]
)
def test_every_prediction_target_gives_the_same_run(target):
    truth, x0, _ = world(processes.VP())
    denoiser = tw.FunctionDenoiser(lambda x, t: truth(x, t).to(target), processes.VP(), target)
    expected = tw.invert(truth, x0, solver=BDIA(), steps=10)
    found = tw.invert(denoiser, x0, solver=BDIA(), steps=10)
    torch.testing.assert_close(found.x, expected.x, rtol=0, atol=1e-9)
    torch.testing.assert_close(tw.sample(denoiser, found), x0, rtol=0, atol=1e-11)


def test_float32_runs_come_back_to_the_bit_and_nearly_so_with_float32_states():
    denoiser, x0, _ = world(processes.VP())
    network = tw.NetworkDenoiser(lambda x, t: denoiser(x, t[0].item()).x0.float(), processes.VP(), tw.targets.Data())
    x0 = x0.float()
    pair = tw.invert(network, x0, solver=BDIA(), steps=20)
    assert (pair.x.dtype, pair.states.dtype, pair.dtype) == (torch.float64, torch.float32, torch.float32)
    back = tw.sample(network, pair)
    assert back.dtype == torch.float32
    torch.testing.assert_close(back, x0, rtol=0, atol=1e-6)
    narrow = tw.invert(network, x0, solver=BDIA(float64=False), steps=20)
    assert narrow.x.dtype == torch.float32
    torch.testing.assert_close(tw.sample(network, narrow), x0, rtol=0, atol=1e-3)
    torch.testing.assert_close(narrow.x, pair.states, rtol=0, atol=1e-3)


def test_a_network_sees_its_own_type():
    seen = set()

    def network(x, t):
        seen.add(x.dtype)
        return 0.5 * x

    denoiser = tw.NetworkDenoiser(network, processes.VP(), tw.targets.Noise(), event=(2,))
    for solver in (BDIA(), BDIA(0.9, Heun())):
        tw.sample(denoiser, 2, solver=solver, steps=4)
    assert seen == {torch.float32}


def test_it_is_exact_under_guidance_and_edits_under_another_label():
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    denoiser = tw.MixtureDenoiser(means, 0.02, None, processes.VP(), torch.tensor([0, 1]))
    guided = tw.guidance.ClassifierFree(denoiser, 2.0)
    x0 = means[:1] + 0.1 * random.normal((6, 2), 4, dtype=torch.float64)
    one, other = (torch.full((6,), i) for i in (0, 1))
    times = grids.uniform(denoiser.process, 20, start=0.9, end=1e-3)
    pair = tw.invert(guided, x0, solver=BDIA(), times=times, cond={"label": one})
    torch.testing.assert_close(tw.sample(guided, pair, cond={"label": one}), x0, rtol=0, atol=1e-10)
    edited = tw.sample(guided, pair, cond={"label": other})
    assert ((edited - means[1]).norm(dim=1) < (edited - means[0]).norm(dim=1)).all()
    plain = tw.invert(guided, x0, solver=DDIM(), times=times, cond={"label": one})
    assert (tw.sample(guided, plain, solver=DDIM(), times=times, cond={"label": one}) - x0).abs().max() > 1e-2


def test_two_sided_interpolants_by_their_velocity():
    one = tw.MixtureDenoiser(torch.tensor([[1.0, 0.0], [-1.0, 0.5]]), 0.2)
    denoiser = tw.MixtureInterpolantDenoiser(one, tw.MixtureDenoiser(torch.zeros(1, 2), 1.0), processes.Interpolant())
    x0 = random.normal((4, 2), 1, dtype=torch.float64)
    pair = tw.invert(denoiser, x0, solver=BDIA(1.0, Euler()), steps=15)
    torch.testing.assert_close(tw.sample(denoiser, pair), x0, rtol=0, atol=1e-11)
    with pytest.raises(IncompatibleError, match="two-sided"):
        tw.invert(denoiser, x0, solver=BDIA(), steps=15)


@pytest.mark.parametrize("solver", [BDIA(0.9), BDIA(0.9, Heun(), "extrapolated"), BDIA(0.9, Euler())], ids=repr)
@pytest.mark.parametrize("process", [processes.VP(), processes.OUVE()], ids=repr)
def test_each_sample_may_have_a_grid_of_its_own(solver, process):
    denoiser, x0, cond = world(process)
    own = torch.stack([torch.linspace(top, low, 9, dtype=torch.float64) for top, low in ((0.9, 0.05), (0.7, 0.1))], 1)
    cond = {name: value[:2] for name, value in cond.items()}
    pair = tw.invert(denoiser, x0[:2], solver=solver, times=own, cond=cond)
    torch.testing.assert_close(tw.sample(denoiser, pair, cond=cond), x0[:2], rtol=0, atol=1e-10)
    for i in range(2):
        one = {name: value[i : i + 1] for name, value in cond.items()}
        alone = tw.invert(denoiser, x0[i : i + 1], solver=solver, times=own[:, i], cond=one)
        torch.testing.assert_close(pair.x[i : i + 1], alone.x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("solver", "each"), [(BDIA(), 1), (BDIA(0.9, Heun()), 2), (BDIA(0.9, Heun(), "extrapolated"), 2)]
)
def test_it_takes_the_evaluations_of_its_increment(solver, each):
    counter = tw.CountingDenoiser(mixture())
    times = grids.uniform(processes.VP(), 10, end=0.01)
    pair = tw.invert(counter, noisy(processes.VP(), 0.01), solver=solver, times=times)
    assert counter.evaluations == 10 * each == 10 * solver.evaluations
    # A pair holds the first step's result already.
    tw.sample(counter, pair)
    assert counter.evaluations == 19 * each


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("batch", [0, 1])
def test_few_steps_and_small_batches(steps, batch):
    denoiser, x0, _ = world(processes.VP())
    pair = tw.invert(denoiser, x0[:batch], solver=BDIA(), steps=steps)
    assert pair.x.shape == (batch, 2)
    torch.testing.assert_close(tw.sample(denoiser, pair), x0[:batch], rtol=0, atol=1e-12)


def test_samples_do_not_depend_on_their_batch():
    denoiser, x0, _ = world(processes.VP())
    whole = tw.invert(denoiser, x0, solver=BDIA(), steps=10)
    for i in range(len(x0)):
        torch.testing.assert_close(tw.invert(denoiser, x0[i : i + 1], solver=BDIA(), steps=10).x, whole.x[i : i + 1])


def test_gradients_flow_through_both_ways():
    denoiser, x0, _ = world(processes.VP())
    x0 = x0.requires_grad_()
    pair = tw.invert(denoiser, x0, solver=BDIA(), steps=6, gradients=True)
    back = tw.sample(denoiser, pair, gradients=True)
    (gradient,) = torch.autograd.grad(back.sum(), x0)
    # There and back is the identity, and so is its Jacobian.
    torch.testing.assert_close(gradient, torch.ones_like(gradient), rtol=0, atol=1e-9)


def test_an_observer_may_replace_the_state():
    denoiser, x = mixture(), noisy(processes.VP(), TIMES[0])
    seen = []

    def clamp(x, t, i):
        seen.append(t)
        return x.clamp(-1.0, 1.0) if i == 2 else None

    found = tw.sample(denoiser, x, solver=BDIA(0.7), times=TIMES, observer=clamp)
    states = by_hand(denoiser, x, 0.7, TIMES[:4])
    here, before = states[3].clamp(-1.0, 1.0), states[2]
    for i in range(3, len(TIMES) - 1):
        eps = denoiser(here, TIMES[i]).eps
        up, down = (ddim(denoiser.process, here, eps, TIMES[i], TIMES[j]) for j in (i - 1, i + 1))
        before, here = here, 0.7 * (before - up) + down
    torch.testing.assert_close(found, here, rtol=0, atol=1e-12)
    assert seen == list(TIMES[1:])


def test_what_cannot_be_undone_is_named():
    for gamma in (0.0, -0.5, 1.1, math.nan):
        with pytest.raises(InputError, match="gamma"):
            BDIA(gamma)
    with pytest.raises(InputError, match="draws noise"):
        BDIA(increment=DDPM())
    with pytest.raises(InputError, match="table solver"):
        BDIA(increment=tw.solvers.AdaptiveDPM())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="back"):
        BDIA(back="heun")  # type: ignore[arg-type]
    counter = tw.CountingDenoiser(mixture())
    with pytest.raises(IncompatibleError, match="earlier steps"):
        tw.invert(counter, noisy(processes.VP(), 0.01), solver=BDIA(increment=DPMSolver(2)), steps=6)
    with pytest.raises(InputError, match=r"amplifies rounding 5\.8e\+17.*fewer steps"):
        tw.invert(counter, noisy(processes.VP(), 0.01), solver=BDIA(0.5), steps=60)
    with pytest.raises(InputError, match="amplifies rounding"):
        tw.invert(counter, noisy(processes.VP(), 0.01), solver=BDIA(1e-9), steps=60)
    assert counter.evaluations == 0
    with pytest.warns(RuntimeWarning, match="float32"):
        tw.invert(counter, noisy(processes.VP(), 0.01).float(), solver=BDIA(0.5), steps=30)


def test_sampling_from_noise_is_never_refused_for_its_amplification():
    assert tw.sample(mixture(), 2, solver=BDIA(0.25), steps=60).isfinite().all()


def test_no_coefficient_is_computed_along_a_run():
    solver, denoiser = BDIA(0.9), mixture()
    problem = Problem(denoiser, TIMES)
    first, second = (solver.init(problem, noisy(processes.VP(), TIMES[0])).memory.lines for _ in range(2))
    assert first is second
