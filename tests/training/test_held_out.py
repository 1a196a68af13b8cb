"""The loss that variants are compared by: the same for one field, whatever process and target it is told in."""

import pytest
import torch

import tweed as tw
from tweed.data import Digits, Tensors
from tweed.errors import InputError
from tweed.training.held_out import HIGH, LOW, HeldOutLoss, Subset, split
from tweed.training.objectives import DenoisingLoss

PROCESSES = (tw.processes.RectifiedFlow(), tw.processes.VP(), tw.processes.Cosine(), tw.processes.EDM())
DATA = Tensors(0.5 * tw.random.normal((700, 2), 3), label=torch.arange(700) % 3)


def test_one_posterior_has_one_loss_under_all_processes_and_targets():
    loss = HeldOutLoss.of(DATA, PROCESSES, ())
    found = []
    for process in PROCESSES:
        exact = tw.GaussianDenoiser(torch.zeros(2), 0.25, process)
        found.append(loss(exact))
        for target in (tw.targets.Noise(), tw.targets.Data(), tw.targets.V(), tw.targets.EDM()):
            told = tw.FunctionDenoiser(lambda x, t, e=exact, w=target: e(x, t).to(w), process, target)
            assert loss(told) == pytest.approx(found[-1], rel=2e-4)
    assert found == pytest.approx([found[0]] * len(found), rel=2e-4)
    # The variance of eps - x_0 given the state, in closed form, averaged over the levels.
    u = torch.linspace(LOW, HIGH, 2001, dtype=torch.float64)
    least = (0.25 / ((1.0 - u) ** 2 * 0.25 + u**2)).mean().item()
    assert found[0] == pytest.approx(least, rel=0.06)
    # A worse field has a greater loss.
    assert loss(tw.GaussianDenoiser(torch.zeros(2), 0.35, PROCESSES[1])) > found[1]


def test_on_the_rectified_flow_it_is_the_loss_of_velocity():
    loss = HeldOutLoss.of(DATA, PROCESSES[:1], ())
    model = tw.GaussianDenoiser(torch.ones(2), 0.3, PROCESSES[0])
    plain = DenoisingLoss(target=tw.targets.Velocity())
    expected = plain(model, loss.rows, t=loss.u, noise=loss.noise).double().mean().item()
    assert loss(model) == pytest.approx(expected, rel=1e-5)
    assert len(loss.u) == 1400  # twice each sample
    assert [loss.u.min().item(), loss.u.max().item()] == pytest.approx([LOW, HIGH], abs=2e-3)
    assert loss.u.mean().item() == pytest.approx(0.5, abs=1e-3)
    # The levels of the two draws of a sample have nothing to do with each other's place.
    assert not torch.equal(loss.noise[:700], loss.noise[700:])


def test_rows_are_a_pure_function_of_the_seed_and_told_conditions():
    a, b, c = (HeldOutLoss.of(DATA, PROCESSES, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(a.noise, b.noise)
    assert torch.equal(a.rows["x"], b.rows["x"])
    assert not torch.equal(a.noise, c.noise)
    assert set(a.rows) == {"x", "label"}
    assert set(HeldOutLoss.of(DATA, PROCESSES, ()).rows) == {"x"}


def test_processes_that_do_not_reach_the_levels_have_the_loss_of_their_own_velocity():
    short = tw.processes.VP(beta_max=1.0)
    loss = HeldOutLoss.of(DATA, (short, short), ())
    assert not loss.straight
    model = tw.GaussianDenoiser(torch.zeros(2), 0.3, short)
    plain = DenoisingLoss(target=tw.targets.Velocity())(model, loss.rows, t=loss.u, noise=loss.noise)
    assert loss(model) == pytest.approx(plain.double().mean().item(), rel=1e-5)
    with pytest.raises(InputError, match="process: VP was given among others"):
        HeldOutLoss.of(DATA, (tw.processes.RectifiedFlow(), short))


def test_the_test_split_is_held_out_where_there_is_one():
    data, held = split({"name": "Digits", "split": "train"})
    assert torch.equal(data.x, Digits("train").x)
    assert torch.equal(held.x, Digits("test").x)
    pairs, held = split({"name": "Digits", "split": "train", "degrade": "shadow"})
    assert (len(pairs), len(held)) == (len(Digits("train")), len(Digits("test")))
    assert "y" in held.conditions


def test_else_a_share_is_held_out_that_no_run_sees():
    table = {"name": "moons", "length": 100, "seed": 4}
    data, held = split(table, 0.2, 7)
    assert isinstance(data, Subset)
    assert (len(data), len(held)) == (80, 20)
    assert sorted([*data.kept.tolist(), *held.kept.tolist()]) == list(range(100))
    assert torch.equal(held.kept, split(table, 0.2, 7)[1].kept)
    assert not torch.equal(held.kept, split(table, 0.2, 8)[1].kept)
    whole = tw.training.build_data(table)
    assert torch.equal(held.batch(torch.tensor([3]))["x"], whole.batch(held.kept[3:4])["x"])
    assert torch.equal(held[3]["x"], whole[int(held.kept[3])]["x"])
    assert (held.shape, held.num_classes, held.conditions) == ((2,), None, ())
    assert held.name == "moons"
    assert len(split({"name": "Digits", "split": "test"}, 0.1)[1]) == round(0.1 * len(Digits("test")))
    with pytest.raises(InputError, match="held_out"):
        split(table, 1.0)
    with pytest.raises(InputError, match="at least two"):
        split({"name": "moons", "length": 1})
    with pytest.raises(AttributeError):
        held.nothing
