"""Aggregates of modalities and their conditional sampling, against jointly Gaussian modalities."""

import pytest
import torch

import tweed as tw
from tweed.core import random
from tweed.core.aggregate import Aggregate, Embedding, Scaled
from tweed.core.exact.modalities import GaussianModalities
from tweed.core.modalities import ModalEstimate, PlugIn
from tweed.core.processes import VP, Cosine, RectifiedFlow, Residual
from tweed.errors import IncompatibleError, InputError
from tweed.guidance import modalities
from tweed.solvers import DDIM, DPMSolver, Euler, Heun

F64 = torch.float64


def joint(sizes=(3, 2), seed=1, process=None, power=1.0):
    """Dependent Gaussians of these sizes, each on its own orthonormal directions."""
    d = sum(sizes)
    a = random.normal((d, d), random.fold(seed, 1), dtype=F64)
    q = torch.linalg.qr(random.normal((d, d), random.fold(seed, 2), dtype=F64))[0]
    mean = random.normal((d, 1), random.fold(seed, 3), dtype=F64)[:, 0]
    parts = dict(zip(("x1", "x2", "x3"), q.split(sizes, 1), strict=False))
    return GaussianModalities(mean, a @ a.T / d + 0.1 * torch.eye(d), parts, process, power)


def pair(r, process=None):
    """Two standard normals of correlation r."""
    encoders = {"x1": torch.eye(2)[:, :1], "x2": torch.eye(2)[:, 1:]}
    return GaussianModalities(torch.zeros(2), torch.tensor([[1.0, r], [r, 1.0]]), encoders, process)


def law(denoiser, known, name, solver, steps):
    """The mean and covariance of what a deterministic sampler, affine in its start, makes of noise."""
    d = denoiser.event[0]
    start = denoiser.process.level(denoiser.t_max).sigma * torch.cat((torch.zeros(1, d), torch.eye(d))).double()
    grid = tw.grids.log_snr
    x = modalities.sample(denoiser, start, known, solver=solver, steps=steps, grid=grid)[name]
    slope = x[1:] - x[0]
    return x[0], slope.T @ slope


class TestAggregate:
    """The sum of encodings and who is in it."""

    def setup_method(self):
        self.aggregate = Aggregate({"a": Scaled(2.0), "label": Embedding(3, (4,), seed=1)}, {"label": 3})
        self.entries = {"a": random.normal((5, 4), 1), "label": torch.tensor([0, 1, 2, 0, 1])}

    def test_mean_of_those_that_are_there(self):
        a, label = (self.aggregate.encode(name, x) for name, x in self.entries.items())
        torch.testing.assert_close(self.aggregate(self.entries), 0.5 * (a + label))
        torch.testing.assert_close(self.aggregate({"label": self.entries["label"]}), label)
        present = torch.tensor([[1, 1], [1, 0], [0, 1], [1, 0], [0, 1]]).bool()
        found = self.aggregate(self.entries, present)
        torch.testing.assert_close(found[1], a[1])
        torch.testing.assert_close(found[2], label[2])
        torch.testing.assert_close(found[0], 0.5 * (a[0] + label[0]))

    def test_what_is_absent_may_be_anything(self):
        broken = {**self.entries, "a": torch.full((5, 4), float("nan"))}
        assert self.aggregate(broken, torch.tensor([[False, True]]).expand(5, 2)).isfinite().all()

    def test_half_power_keeps_the_size_of_unlike_encodings(self):
        d = 4096
        for n in (1, 2, 4):
            encoders = {f"m{i}": Embedding(50, (d,), seed=i) for i in range(n)}
            entries = {name: random.normal((20, 50), 3, draw=i) for i, name in enumerate(encoders)}
            size = Aggregate(encoders, power=0.5)(entries).square().mean()
            assert size == pytest.approx(1.0, rel=0.1)

    def test_probabilities_stand_for_expected_encodings(self):
        p = torch.tensor([[0.2, 0.3, 0.5]])
        each = self.aggregate.encode("label", torch.arange(3))
        torch.testing.assert_close(self.aggregate.encode("label", p)[0], p[0] @ each)

    def test_inversion_gives_back_what_was_averaged(self):
        for power in (1.0, 0.5):
            self.aggregate.power = power
            e = self.aggregate(self.entries)
            torch.testing.assert_close(self.aggregate.invert("a", e, self.entries), self.entries["a"])
        torch.testing.assert_close(
            Aggregate({"a": Scaled(3.0)}).invert("a", torch.ones(1, 2), {}), torch.ones(1, 2) / 3
        )
        for name, others in (("label", self.entries), ("a", {}), ("b", self.entries)):
            with pytest.raises(InputError, match="expected a Scaled one"):
                self.aggregate.invert(name, e, others)

    def test_embedding_keeps_angles_and_size(self):
        code = Embedding(6, (4, 3), seed=2)(torch.eye(6) * 6**0.5)
        torch.testing.assert_close(code.flatten(1) @ code.flatten(1).T, 12.0 * torch.eye(6))
        assert code.square().mean().item() == pytest.approx(1.0, rel=1e-5)
        assert not torch.allclose(Embedding(6, (12,), seed=3).matrix, Embedding(6, (12,), seed=2).matrix)

    def test_refusals(self):
        for make in (
            lambda: Aggregate({}),
            lambda: Aggregate({"x": Scaled()}),
            lambda: Aggregate({"a": Scaled()}, {"b": 2}),
            lambda: Embedding(5, (4,)),
            lambda: Embedding(2, (4,), matrix=torch.zeros(3, 2)),
            lambda: self.aggregate({"b": torch.zeros(1, 4)}),
        ):
            with pytest.raises(InputError, match=r"w(as|ere) given; expected"):
                make()


class TestExact:
    """The closed form itself."""

    def test_the_aggregate_is_that_of_its_gaussian(self):
        model = joint()
        m, c = model.matrix @ model.mean, model.matrix @ model.covariance @ model.matrix.T
        plain = tw.GaussianDenoiser(m, c)
        z, t = random.normal((7, 5), 4, dtype=F64), torch.linspace(0.05, 0.95, 7).double()
        torch.testing.assert_close(model(z, t).x0, plain(z, t).x0, rtol=0, atol=1e-10)

    def test_more_modalities_than_room_are_told_apart_as_well_as_they_can_be(self):
        # x1 and x2 on the same direction: given the sum s, E[x1] = s / 2 where they are independent.
        encoders = {"x1": torch.ones(1, 1), "x2": torch.ones(1, 1)}
        model = GaussianModalities(torch.zeros(2), torch.eye(2), encoders, RectifiedFlow())
        read = model(torch.tensor([[0.3]]).double(), 1e-9).modalities
        assert read["x1"].item() == pytest.approx(0.3, abs=1e-6)
        told = model(torch.tensor([[0.3]]).double(), 1e-9, x1=torch.tensor([[1.0]])).modalities
        assert told["x2"].item() == pytest.approx(-0.4, abs=1e-6)

    def test_refusals(self):
        eye = {"x1": torch.eye(2)}
        for mean, covariance in ((torch.zeros(3), torch.eye(2)), (torch.zeros(2), -torch.eye(2))):
            with pytest.raises(InputError):
                GaussianModalities(mean, covariance, eye)
        with pytest.raises(IncompatibleError, match="endpoint"):
            GaussianModalities(torch.zeros(2), torch.eye(2), eye, Residual())


class TestConditional:
    """Samples of x2 given x1."""

    @pytest.mark.parametrize(
        ("process", "solver", "steps"),
        [
            (VP(), DDIM(), 300),
            (Cosine(), DPMSolver(), 60),
            (RectifiedFlow(), Heun(), 60),
            (RectifiedFlow(), Euler(), 600),
        ],
    )
    @pytest.mark.parametrize("sizes", [(3, 2), (2, 1, 2)])
    def test_told_what_is_known_any_solver_has_the_right_law(self, process, solver, steps, sizes):
        model = joint(sizes, process=process)
        values = random.normal((1, sum(sizes)), 6, dtype=F64)
        known = {name: values[:, place] for name, place in model.places.items() if name != "x2"}
        mean, covariance = model.given(known)
        place = model.places["x2"]
        found = law(model, known, "x2", solver, steps)
        off = (found[0] - mean[0, place]).norm() / mean[0, place].norm()
        spread = (found[1] - covariance[place][:, place]).norm() / covariance[place][:, place].norm()
        assert off < 0.05
        assert spread < 0.1

    @pytest.mark.parametrize("r", [0.1, 0.6, 0.95])
    def test_the_plug_in_rule_has_the_bias_that_is_derived(self, r):
        one = {"x1": torch.ones(1, 1).double()}
        mean = law(PlugIn(pair(r, Cosine())), one, "x2", DPMSolver(), 600)[0].item()
        v = 1.0 + torch.logspace(-12, 8, 200001, base=10.0, dtype=F64)
        m = 0.5 * r * (1 - r**2) ** 0.25 * torch.trapezoid((v**2 - r**2) ** -1.25, v).item()
        assert mean == pytest.approx(m, rel=0.01)
        assert mean < 0.9 * r
        exact = law(pair(r, Cosine()), one, "x2", DPMSolver(), 100)[0].item()
        assert exact == pytest.approx(r, rel=0.01)

    def test_independent_modalities_have_no_bias(self):
        one = {"x1": torch.ones(1, 1).double()}
        mean, covariance = law(PlugIn(pair(0.0)), one, "x2", DPMSolver(), 100)
        assert abs(mean.item()) < 1e-6
        assert covariance.item() == pytest.approx(1.0, rel=0.01)

    def test_all_known_is_exact(self):
        model = joint()
        known = {
            name: random.normal((4, place.stop - place.start), 8, dtype=F64) for name, place in model.places.items()
        }
        e = model.aggregate(known)
        z, eps = random.normal((4, 5), 9, dtype=F64), random.normal((4, 5), 10, dtype=F64)
        for denoiser in (model, PlugIn(model)):
            torch.testing.assert_close(denoiser(z, 0.4, **known).x0, e, rtol=0, atol=1e-9)
            noisy = model.process.perturb(e, 0.4, eps)
            torch.testing.assert_close(denoiser(noisy, 0.4, **known).eps, eps, rtol=0, atol=1e-8)

    def test_mix_goes_from_ignorance_to_the_guess(self):
        model = joint()
        known = {"x1": random.normal((4, 3), 8, dtype=F64)}
        z = random.normal((4, 5), 9, dtype=F64)
        plain = model(z, 0.4).x0
        torch.testing.assert_close(PlugIn(model, 0.0)(z, 0.4, **known).x0, plain)
        middle = PlugIn(model, 0.5)(z, 0.4, **known).x0
        torch.testing.assert_close(middle, 0.5 * (plain + PlugIn(model)(z, 0.4, **known).x0))
        assert isinstance(PlugIn(model)(z, 0.4), ModalEstimate)
        torch.testing.assert_close(PlugIn(model)(z, 0.4).x0, plain)
        with pytest.raises(InputError, match="mix"):
            PlugIn(model, 1.5)
        with pytest.raises(InputError, match="aggregate"):
            PlugIn(tw.GaussianDenoiser(torch.zeros(2), 1.0))

    def test_joint_samples_have_the_joint_law(self):
        model = joint()
        found = modalities.sample(model, 4000, solver=DPMSolver(), steps=20, seed=3, dtype=F64)
        x = torch.cat((found["x1"], found["x2"]), 1)
        torch.testing.assert_close(x.mean(0), model.mean, rtol=0, atol=0.1)
        assert (x.T.cov() - model.covariance).norm() < 0.1 * model.covariance.norm()

    def test_batch_of_one_and_unknown_names(self):
        model = joint()
        known = {"x1": torch.zeros(1, 3)}
        assert modalities.sample(model, 1, known, steps=3)["x2"].shape == (1, 2)
        assert torch.equal(modalities.sample(model, 3, known, steps=3)["x1"], torch.zeros(3, 3))
        assert modalities.predict(model, {"x1": torch.zeros(1, 3).double()}, "x2").shape == (1, 2)
        for call in (
            lambda: modalities.sample(model, 2, {"y1": torch.zeros(2, 3)}),
            lambda: modalities.predict(model, known, "x1"),
            lambda: modalities.predict(model, {}, "x1"),
            lambda: modalities.predict(model, known, "z"),
            lambda: modalities.log_probability(model, "x1"),
            lambda: modalities.sample(tw.GaussianDenoiser(torch.zeros(2), 1.0), 2),
        ):
            with pytest.raises(InputError):
                call()
