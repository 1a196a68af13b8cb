"""`tweed bench`: what it measures, what it writes, and that it does without the peers."""

import json
import math

import pytest
import torch

from tweed.cli import main
from tweed.cli._bench import evidence, fitted, options, overhead, peers, solvers, training
from tweed.core import random
from tweed.core.denoiser import FunctionDenoiser
from tweed.core.exact import GaussianDenoiser
from tweed.core.processes import EDM, VP
from tweed.recipes import _timing as timing
from tweed.solvers import DDIM, DPMSolver, Euler, Heun
from tweed.solvers.accuracy import compare, converged, measure, rmse, times_within

ROW = {"library", "method", "grid", "budget", "evaluations", "rmse"}


@pytest.fixture
def alone(monkeypatch):
    """As if no peer were installed."""
    monkeypatch.setattr(peers, "_installed", lambda name: False)
    peers.k_sampling.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None)
    yield
    peers.k_sampling.cache_clear()


@pytest.fixture
def small(monkeypatch):
    """Few solvers and starts of few dimensions."""

    def case(starts, seed, process=None):
        variances = torch.tensor([0.02, 0.3, 1.0], dtype=torch.float64)
        denoiser = GaussianDenoiser(torch.zeros(3, dtype=torch.float64), variances, EDM(0.002, 80.0))
        x = 80.0 * random.normal((starts, 3), seed, dtype=torch.float64)
        return solvers.Case(denoiser, x, 1.0, denoiser.process.t_min, 1e-4)

    monkeypatch.setattr(solvers, "digits_mixture", case)
    monkeypatch.setattr(fitted, "_gaussian", lambda denoiser: denoiser)
    for name, few in (("HALVES", 8), ("STARTS", 8), ("TRIES", 2)):
        monkeypatch.setattr(fitted, name, few)
    monkeypatch.setattr(solvers, "OURS", (DDIM(), DPMSolver(2), DPMSolver(3, form="noise"), Heun()))


def bench(capsys, *words):
    code = main(["bench", *words, "--json"])
    return code, json.loads(capsys.readouterr().out)


class TestAccuracy:
    process = EDM(0.002, 80.0)
    denoiser = GaussianDenoiser(torch.zeros(2, dtype=torch.float64), torch.tensor([0.1, 2.0]), process)
    x = 80.0 * random.normal((5, 2), 0, dtype=torch.float64)

    def exact(self):
        v = torch.tensor([0.1, 2.0], dtype=torch.float64)
        return self.x * ((v + 0.002**2) / (v + 80.0**2)).sqrt()

    def test_the_converged_solution_is_that_of_the_flow(self):
        found = converged(self.denoiser, self.x, end=self.process.t_min, tolerance=1e-6)
        torch.testing.assert_close(found, self.exact(), rtol=0, atol=1e-5)

    def test_what_does_not_converge_is_refused(self):
        def rough(x, t, **cond):
            return (1e4 * x).sin()

        with pytest.raises(ValueError, match="tolerance"):
            converged(FunctionDenoiser(rough, self.process), self.x, end=0.001, steps=4, tolerance=1e-9)

    @pytest.mark.parametrize(
        "solver", [DDIM(), Heun(), DPMSolver(3, kind="singlestep"), DPMSolver(2, start="lower")], ids=repr
    )
    @pytest.mark.parametrize("budget", [2, 7, 10])
    @pytest.mark.parametrize("end", [0.0, process.t_min])
    def test_the_budget_is_kept_and_used(self, solver, budget, end):
        found = measure(self.denoiser, self.x, self.exact(), solver, budget, end=end)
        if math.isnan(found.rmse):
            assert found.evaluations == 0
            assert solver.evaluations > budget
        else:
            assert budget - solver.evaluations < found.evaluations <= budget

    def test_no_grid_is_found_for_too_small_a_budget(self):
        from tweed.core import grids

        solver = DPMSolver(3, kind="singlestep")
        assert times_within(self.process, solver, 2, grids.log_snr, end=self.process.t_min) is None

    def test_more_evaluations_are_more_accurate_and_rows_come_in_order(self):
        rows = compare(self.denoiser, self.x, [DDIM(), DPMSolver(2)], [8, 32], end=self.process.t_min)
        assert [row.evaluations for row in rows] == [8, 32, 8, 32]
        assert rows[1].rmse < 0.5 * rows[0].rmse
        assert rows[3].rmse < 0.2 * rows[2].rmse

    def test_a_run_that_is_not_finite_is_infinitely_far(self):
        def broken(x, t, **cond):
            return x / 0.0

        found = measure(FunctionDenoiser(broken, self.process), self.x, self.x, Euler("noise"), 4, end=0.001)
        assert found.rmse == math.inf


class TestSolvers:
    def test_rows_files_and_verdict(self, small, capsys, tmp_path):
        code, result = bench(capsys, "solvers", "--budget", "10", "20", "--starts", "4", "--out", str(tmp_path))
        assert json.loads((tmp_path / "bench-solvers.json").read_text()) == result
        assert (tmp_path / "bench-solvers.png").read_bytes()[:4] == b"\x89PNG"
        assert sorted(p.name for p in tmp_path.iterdir()) == ["bench-solvers.json", "bench-solvers.png"]
        assert all(set(row) == ROW and row["evaluations"] <= row["budget"] for row in result["rows"])
        for line in result["summary"]:
            best = min(
                row["rmse"] for row in result["rows"] if row["budget"] == line["budget"] and row["library"] == "tweed"
            )
            assert line["ours"]["rmse"] == best
        assert code == (1 if result["holds"] is False else 0)

    def test_without_peers(self, small, alone, capsys, tmp_path):
        code, result = bench(capsys, "solvers", "--budget", "10", "--fit", "--starts", "2", "--out", str(tmp_path))
        assert code == 0
        assert result["peers"] == {}
        assert {row["library"] for row in result["rows"]} == {"tweed"}
        assert result["summary"][0]["holds"] is None

    def test_being_behind_is_told(self, small, monkeypatch, capsys, tmp_path):
        perfect = peers.Peer("k-diffusion", "oracle", lambda field, n: exact_end(field.x), lambda n: n)
        monkeypatch.setattr(peers, "peers", lambda: [perfect])
        code, result = bench(capsys, "solvers", "--budget", "10", "--fit", "--starts", "4", "--out", str(tmp_path))
        assert (code, result["holds"]) == (1, False)
        assert main(["bench", "solvers", "--budget", "10", "--fit", "--starts", "4", "--out", str(tmp_path)]) == 1
        assert "oracle" in capsys.readouterr().out

    def test_fitted_grids_are_measured_and_shown(self, small, capsys, tmp_path):
        words = ["--budget", "10", "--fit", "10", "--starts", "4", "--out", str(tmp_path)]
        code, result = bench(capsys, "solvers", *words)
        kinds = {each["row"]["grid"]: each for each in result["grids"]}
        assert set(kinds) == {"fitted", "jump, fitted"}
        # On one Gaussian the jump is the whole flow.
        assert kinds["jump, fitted"]["row"]["rmse"] < 0.2 * kinds["fitted"]["row"]["rmse"]
        assert kinds["fitted"]["cross"] > 0
        assert code == (1 if result["holds"] is False else 0)

    def test_a_run_is_entered_into_the_evidence_once(self, small, capsys, tmp_path):
        path = tmp_path / "evidence.json"
        for seed in ("0", "1"):
            bench(
                capsys,
                "solvers",
                "--budget",
                "10",
                "--fit",
                "--seed",
                seed,
                "--out",
                str(tmp_path),
                "--record",
                str(path),
            )
        (case,) = json.loads(path.read_text())["cases"]
        assert (case["name"], case["seed"], case["guided"]) == ("digits-mixture", 1, False)
        errors = [row["error"] for row in case["budgets"][0]["rows"]]
        assert errors == sorted(errors)
        assert evidence.case_from(json.loads((tmp_path / "bench-solvers.json").read_text())) == case

    def test_bad_input(self, capsys, tmp_path):
        assert main(["bench", "solvers", "--model", "nothing", "--fit", "--out", str(tmp_path)]) == 2
        assert "nothing" in capsys.readouterr().err
        assert main(["bench", "solvers", "--frechet", "3", "--out", str(tmp_path)]) == 2
        assert main(["bench", "solvers", "--budget", "1", "--out", str(tmp_path)]) == 2
        assert "budget" in capsys.readouterr().err
        assert main(["bench", "training", "--rounds", "0"]) == 2
        assert main(["bench", "solver"]) == 2
        assert not list(tmp_path.iterdir())

    def test_pareto(self):
        rows = [{"budget": b, "rmse": e} for b, e in [(5, 1.0), (5, 2.0), (10, 1.5), (20, 0.5), (40, math.nan)]]
        assert [(r["budget"], r["rmse"]) for r in solvers.pareto(rows)] == [(5, 1.0), (20, 0.5)]


def exact_end(x):
    variances = torch.tensor([0.02, 0.3, 1.0], dtype=torch.float64)
    return x * (variances / (variances + 80.0**2)).sqrt()


class TestPeers:
    @pytest.mark.parity
    @pytest.mark.parametrize("process", [EDM(0.002, 80.0), VP()], ids=repr)
    def test_each_takes_the_evaluations_it_says_and_approaches_the_exact_flow(self, process):
        from tweed.core.denoiser import CountingDenoiser

        found = peers.peers()
        if not found:
            pytest.skip("no peer is installed")
        variances = torch.tensor([0.05, 0.3, 1.0], dtype=torch.float64)
        start, end = process.level(1.0), process.level(process.t_min)
        high, low = start.sigma / start.alpha, end.sigma / end.alpha
        x = high * random.normal((16, 3), 1, dtype=torch.float64)
        exact = x * (variances / (variances + high**2)).sqrt()
        for peer in found:
            errors = []
            for budget in (12, 36):
                counter = CountingDenoiser(GaussianDenoiser(torch.zeros(3), variances, process))
                result = peer.run(peers.Field(counter, x, high, low), peer.levels(budget))
                assert counter.evaluations == peer.evaluations(peer.levels(budget)) <= budget, peer.name
                errors.append(rmse(result, exact))
            # diffusers' third-order noise form divides by a step of length zero at its end.
            if math.isfinite(errors[1]):
                assert errors[1] < 0.1, (peer.library, peer.name, errors)

    @pytest.mark.parity
    def test_the_same_method_on_the_same_grid_is_the_same(self):
        if peers.k_sampling() is None:
            pytest.skip("k-diffusion is not installed")
        peer = next(p for p in peers.k_diffusion() if p.name == "euler")
        case = TestAccuracy
        field = peers.Field(case.denoiser, case.x, 80.0, 0.002)
        from tweed import sample
        from tweed.core import grids

        ours = sample(case.denoiser, case.x, solver=DDIM(), steps=8, grid=grids.karras)
        # Its levels are float32.
        torch.testing.assert_close(peer.run(field, 8), ours, rtol=0, atol=1e-4)


class TestOverhead:
    def test_rows_and_no_reads_in_our_loops(self, capsys, tmp_path):
        _, result = bench(capsys, "overhead", "--rounds", "2", "--steps", "4", "--out", str(tmp_path))
        assert (tmp_path / "bench-overhead.png").exists()
        rows = {row["run"]: row for row in result["rows"]}
        for name in overhead.OURS:
            assert rows[f"tweed {name}"]["host_reads"] == 0
            assert rows[f"tweed {name}"]["us_per_step"] > 0
        # The look for what is not finite, after the loop, is seen.
        assert rows["tweed.sample, all of it"]["host_reads"] > 0

    def test_without_peers(self, alone, capsys, tmp_path):
        code, result = bench(capsys, "overhead", "--rounds", "1", "--steps", "2", "--out", str(tmp_path))
        assert code == 0
        assert result["ratio"] is None
        assert not any(row["run"].startswith("diffusers") for row in result["rows"])

    def test_the_table(self, alone, capsys, tmp_path):
        assert main(["bench", "overhead", "--rounds", "1", "--steps", "2", "--out", str(tmp_path)]) == 0
        assert "DPMSolver(order=2)" in capsys.readouterr().out


class TestTraining:
    @pytest.fixture
    def tiny(self, monkeypatch):
        def make(net):
            return Tiny()

        monkeypatch.setattr(training, "ours", make)
        monkeypatch.setattr(training, "theirs", make)

    def test_without_peers(self, tiny, alone, capsys, tmp_path):
        code, result = bench(capsys, "training", "--batch", "2", "--rounds", "1", "--out", str(tmp_path))
        assert (code, result["ratio"], result["holds"]) == (0, None, None)
        assert result["rows"][0]["parameters"] == 3 * 3 + 3
        assert (tmp_path / "bench-training-unet.json").exists()

    @pytest.mark.parametrize("net", ["unet", "dit"])
    def test_options_beside_the_plain_network(self, net, monkeypatch, capsys, tmp_path):
        small = {"unet": {"channels": 8, "groups": 4, "multipliers": [1, 2]}, "dit": {"hidden": 24, "depth": 2}}
        monkeypatch.setitem(options.PLAIN, net, {**options.PLAIN[net], **small[net]})
        # What takes no time is within any bound, what takes forever is not.
        monkeypatch.setattr(options, "BOUNDS", {"routing": 1e9})
        words = ["training", "--net", net, "--options", "--batch", "1", "--rounds", "1", "--out", str(tmp_path)]
        code, result = bench(capsys, *words)
        rows = {row["name"]: row for row in result["rows"]}
        assert (code, result["holds"]) == (0, True)
        assert set(rows) == {"plain", *options.OPTIONS[net], "AdamW", "DualAdam", "InvAdam"}
        assert rows["plain"]["ratio"] == rows["AdamW"]["ratio"] == 1.0
        assert rows["routing"]["parameters"] == rows["plain"]["parameters"]
        assert all(row["ms"] > 0 for row in rows.values())
        monkeypatch.setattr(options, "BOUNDS", {"routing": 0.0})
        assert main(["bench", *words]) == 1
        assert "NO" in capsys.readouterr().out

    @pytest.mark.parity
    @pytest.mark.parametrize("net", ["unet", "dit"])
    def test_the_networks_are_of_one_size(self, net):
        pytest.importorskip("diffusers")
        with torch.device("meta"):
            ours, theirs = (sum(p.numel() for p in make(net).parameters()) for make in (training.ours, training.theirs))
        assert ours == pytest.approx(theirs, rel=0.0 if net == "unet" else 0.1)


class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Conv2d(3, 3, 1)

    def forward(self, x, t):
        return self.net(x)


def test_turns_alternate():
    order = []
    times = timing.in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, warmup=0)
    assert order == ["b", "a", "a", "b"]
    assert all(len(values) == 2 for values in times.values())
    assert timing.median_ratio([1.0, 4.0, 3.0], [1.0, 2.0, 1.0]) == 2.0
