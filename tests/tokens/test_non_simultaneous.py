"""Levels of tokens' own: Poisson laws, labels, the process, the sampler's limits, training, the search for a grid."""

import itertools
import math

import pytest
import torch

import tweed as tw
from tweed.core import random
from tweed.data.translation import Translation
from tweed.errors import IncompatibleError, InputError
from tweed.tokens.non_simultaneous import (
    NonSimultaneous,
    NonSimultaneousLoss,
    SqrtProcess,
    embedding_denoiser,
    words,
)
from tweed.tokens.poisson_levels import PoissonTokenSchedule, optimize_time_grid, poisson_quantile

F64 = torch.float64
WORLD = Translation(words=8, length=4, ambiguous=2)


def denoiser(seed=1):
    config = {
        "name": "embedding-transformer",
        "vocab": WORLD.size,
        "source_vocab": 8,
        "width": 32,
        "depth": 1,
        "dim": 8,
    }
    return embedding_denoiser(tw.nets.build({**config, "heads": 2}, seed), 4)


def test_counts_are_poisson():
    schedule, t = PoissonTokenSchedule(levels=1000, spread="poisson"), torch.full((1,), 0.01, dtype=F64)
    counts = schedule.counts(t, random.uniform((1, 200000), 1, dtype=F64))[0]
    rate = schedule.rate(t).item()
    assert counts.mean().item() == pytest.approx(rate, rel=0.01)
    assert counts.var().item() == pytest.approx(rate, rel=0.02)
    # The raw spread leaves them as they are.
    assert torch.equal(schedule.from_counts(t, counts[None])[0], counts)


def test_quantiles_are_the_smallest_counts_that_reach():
    rate = torch.tensor(2.0, dtype=F64)
    cdf = torch.tensor(
        [sum(math.exp(-2) * 2**j / math.factorial(j) for j in range(k + 1)) for k in range(6)], dtype=F64
    )
    assert poisson_quantile(cdf - 1e-9, rate).tolist() == [0, 1, 2, 3, 4, 5]
    assert poisson_quantile(cdf + 1e-9, rate).tolist() == [1, 2, 3, 4, 5, 6]
    assert poisson_quantile(torch.tensor([0.5], dtype=F64), torch.tensor([0.0], dtype=F64)).item() == 0.0


def test_the_ends_and_the_limits():
    u = random.uniform((3, 50), 2, dtype=F64)
    t = torch.tensor([0.0, 0.3, 0.995], dtype=F64)
    published = PoissonTokenSchedule().sample(t, u)
    assert bool((published[0] == 0).all())
    assert bool((published[2] == 99).all())
    assert published[1].min() >= 0
    assert len(published[1].unique()) > 5
    none = PoissonTokenSchedule(spread="none").sample(t, u)
    assert bool((none[1] == round(2 * 99 * 0.3)).all())
    two = PoissonTokenSchedule(levels=2).sample(t, u)
    assert set(two.unique().tolist()) == {0.0, 1.0}


def test_labels_are_the_quantiles_in_the_order_of_the_losses():
    schedule, t = PoissonTokenSchedule(spread="poisson"), torch.tensor([0.2], dtype=F64)
    loss = torch.tensor([[3.0, 1.0, 2.0, 9.0, 0.0]], dtype=F64)
    real = torch.tensor([[True, True, True, False, False]])
    labels = schedule.labels(loss, real, t)[0]
    rate = schedule.rate(t)
    expected = poisson_quantile(torch.tensor([5 / 6, 1 / 6, 0.5], dtype=F64), rate)
    assert torch.equal(labels[:3], expected)
    assert bool((labels[3:] == 0).all())


@pytest.mark.parametrize("noise", [1.0, 6.5])
def test_the_process_is_that_of_the_square_root(noise):
    process = SqrtProcess(noise)
    t = torch.linspace(0.0, 0.98, 40, dtype=F64, requires_grad=True)
    kept = process.alpha(t) ** 2
    torch.testing.assert_close(kept, 1.0 - (t + 1e-4).sqrt())
    torch.testing.assert_close(kept + (process.sigma(t) / noise) ** 2, torch.ones_like(t))
    for value, slope in ((process.alpha, process.alpha_dot), (process.sigma, process.sigma_dot)):
        (truth,) = torch.autograd.grad(value(t).sum(), t)
        torch.testing.assert_close(slope(t), truth)
    inner = t.detach()[1:]
    torch.testing.assert_close(process.time(process.log_snr(inner)), inner, rtol=1e-9, atol=1e-9)
    assert process.alpha(0.0).item() ** 2 == pytest.approx(0.99)


def test_every_word_is_noised_to_its_own_level():
    process = SqrtProcess()
    x0, noise = torch.ones(2, 3, 5), torch.zeros(2, 3, 5)
    levels = torch.tensor([[0.0, 0.5, 0.9], [0.2, 0.2, 0.0]])
    x = process.perturb(x0, levels, noise)
    torch.testing.assert_close(x[..., 0], process.alpha(levels).float())


def test_ordinary_solvers_run_on_the_same_denoiser():
    made, source = denoiser(), WORLD.draw(3, 1)
    for solver in (tw.solvers.DDIM(), tw.solvers.DPMSolver(order=2)):
        x = tw.sample(made, 3, solver=solver, steps=4, cond={"source": source}, seed=1)
        assert x.shape == (3, 4, 8)
        assert words(made, x).shape == (3, 4)


def test_the_network_is_told_a_level_for_each_word():
    made, source = denoiser(), WORLD.draw(2, 1)
    x = random.normal((2, 4, 8), 3)
    one = made(x, 0.4, source=source).x0
    torch.testing.assert_close(made(x, torch.full((2, 4), 0.4), source=source).x0, one)
    other = made(x, torch.tensor([[0.4, 0.4, 0.4, 0.9]]).expand(2, -1), source=source).x0
    assert (other - one).abs().max() > 1e-4


def test_one_step_is_the_first_answer_whatever_the_levels():
    made, source = denoiser(), WORLD.draw(3, 1)
    start = made.process.prior((3, 4, 8), 5)
    first = made(start / 6.5, torch.ones(3, 4), source=source, previous=torch.zeros(3, 4, 8)).x0
    for rule in ("predicted", "poisson", "simultaneous"):
        solver = NonSimultaneous(levels=rule)
        x = tw.sample(made, start, solver=solver, steps=1, cond={"source": source}, seed=5)
        torch.testing.assert_close(x, first)


def test_samples_do_not_depend_on_the_batch():
    made, source = denoiser(), WORLD.draw(4, 1)
    for rule in ("predicted", "poisson"):
        solver = NonSimultaneous(levels=rule)
        whole = tw.sample(made, 4, solver=solver, steps=3, cond={"source": source}, seed=5)
        part = tw.sample(made, 2, solver=solver, steps=3, cond={"source": source[2:]}, seed=5, index=2)
        torch.testing.assert_close(part, whole[2:], rtol=1e-2, atol=1e-3)


def test_a_share_of_a_batch_has_the_losses_it_has_in_the_whole():
    made, source = denoiser(), WORLD.draw(6, 1)
    loss, batch = NonSimultaneousLoss(), {"x": WORLD.translate(source), "source": source}
    whole = loss(made, batch, seed=4, step=3)
    part = {name: value[2:5] for name, value in batch.items()}
    prepared = loss.prepare(made.process, part, seed=4, step=3, offset=2, total=6)
    torch.testing.assert_close(loss(made, prepared, seed=4, step=3), whole[2:5], rtol=1e-3, atol=1e-4)


def test_the_predictor_does_not_shape_the_denoiser():
    made = denoiser()
    batch = {"x": WORLD.translate(WORLD.draw(8, 1)), "source": WORLD.draw(8, 1)}
    gradients = []
    for predictor in (True, False):
        made.zero_grad(set_to_none=True)
        NonSimultaneousLoss(predictor=predictor)(made, batch, seed=2).sum().backward()
        gradients.append({n: p.grad for n, p in made.named_parameters() if p.grad is not None})
    for name, value in gradients[1].items():
        if "predictor" not in name and "level" not in name and "source" not in name:
            torch.testing.assert_close(gradients[0][name], value)
    assert any("predictor" in name for name in gradients[0])
    assert not any("predictor" in name for name in gradients[1])


def test_it_is_trained_and_translates():
    data = WORLD.data(4000, 1)
    result = tw.fit(
        denoiser(), data, steps=150, batch_size=64, lr=5e-3, objective=NonSimultaneousLoss(), ema=None, progress=False,
        device="cpu",
    )  # fmt: skip
    assert sum(result.losses[-10:]) < 0.7 * sum(result.losses[:10])
    source = WORLD.draw(200, 9)
    with torch.no_grad():
        x = tw.sample(result.denoiser, 200, solver=NonSimultaneous(), steps=3, cond={"source": source}, seed=1)
    assert (words(result.denoiser, x) == WORLD.translate(source)).double().mean().item() > 0.3


def test_translations_follow_their_rules():
    world = Translation(words=10, length=4, ambiguous=1, seed=3)
    table = torch.randperm(11, generator=random.generator(3))
    source = torch.tensor([[2, 4, 3, 4], [0, 2, 0, 5]])
    expected = torch.tensor([[table[2], table[4], table[4], table[3]], [table[0], table[2], table[5], table[10]]])
    assert torch.equal(world.translate(source), expected)


def test_a_grid_is_found_and_never_worse_than_the_uniform_one():
    def objective(times):
        return -sum((a - b) ** 2 for a, b in zip(times, (1.0, 0.9, 0.2, 0.0), strict=True))

    times, best = optimize_time_grid(objective, 3, budget=40, random_first=10, seed=1)
    assert best >= objective((1.0, 2 / 3, 1 / 3, 0.0))
    assert best > -0.01
    assert all(a > b for a, b in itertools.pairwise(times))
    assert optimize_time_grid(objective, 3, budget=1)[0] == pytest.approx((1.0, 2 / 3, 1 / 3, 0.0))
    assert optimize_time_grid(lambda times: 0.0, 1)[0] == (1.0, 0.0)


def test_mistakes_are_named():
    made = denoiser()
    gaussian = tw.GaussianDenoiser(torch.zeros(4, 8), 1.0, tw.processes.VP())
    cases = [
        (lambda: PoissonTokenSchedule(levels=1), "levels: 1"),
        (lambda: PoissonTokenSchedule(spread="wide"), "spread"),
        (lambda: NonSimultaneous(levels="own"), "levels"),
        (lambda: NonSimultaneous(noise=0.0), "noise"),
        (lambda: Translation(length=3), "an even number"),
        (
            lambda: tw.sample(gaussian, 2, solver=NonSimultaneous(), steps=2),
            "expected one with an EmbeddingTransformer",
        ),
        (lambda: tw.sample(made, 2, solver=NonSimultaneous(), steps=2), "source: nothing was given"),
        (lambda: optimize_time_grid(lambda t: 0.0, 0), "steps, budget: 0"),
    ]
    for call, message in cases:
        with pytest.raises((InputError, IncompatibleError), match=message):
            call()
