"""The recipe of Switch-DiT at the smallest scale, and that wrong ingredients are found out."""

import pytest
import torch

from tweed.nets.experts import TimeExperts
from tweed.recipes import _switch_dit_exact as exact
from tweed.recipes import silent, switch_dit
from tweed.recipes.registry import reproduce
from tweed.recipes.switch_dit import BARE, PLAIN, PRIOR, Trained

MASK = "mask: off 1 + the two best gates times their experts"
DENSE = "... all experts at a time: off the dense mixture"
TOKENS = "... experts merged by sample: off experts by token"
OTHERS = "... a sample, others at other times: change"
FRESH = "fresh experts, other weights open: off the plain network"
LOSS = "held-out loss: experts and prior, against plain"


def failed(rows):
    return {row.quantity for row in rows if row.holds is False}


def test_every_relation_holds_and_is_written(tmp_path):
    report = reproduce("switch-dit", seed=3, scale="smoke")
    assert report.holds, [(row.quantity, row.here, row.baseline) for row in report.failed]
    assert {path.name for path in report.write(tmp_path).iterdir()} == {"report.json", "report.md"}


def test_training_is_drawn(monkeypatch, tmp_path):
    monkeypatch.setattr(exact, "alone_rows", lambda seed: [])
    monkeypatch.setitem(
        switch_dit.SCALES, "smoke", switch_dit.Settings(hidden=16, blocks=2, steps=2, rounds=1, timed=1)
    )
    report = switch_dit.run(1, "smoke", silent)
    assert LOSS in {row.quantity for row in report.rows}
    assert (report.write(tmp_path) / "experts.png").is_file()


@pytest.mark.parametrize(
    ("gates", "found"),
    [
        (lambda p, g: g / g.sum(-1, keepdim=True), {MASK}),  # normalised again
        (lambda p, g: p, {MASK}),  # all experts, always
        (lambda p, g: (g > 0).to(g), {MASK, DENSE}),  # the choice without its weight
        (lambda p, g: g.mean(0, keepdim=True).expand_as(g), {MASK, DENSE, OTHERS}),  # one choice for the batch
    ],
    ids=["normalised", "dense", "unweighted", "shared"],
)
def test_wrong_gates_are_found_out(monkeypatch, gates, found):
    right = TimeExperts.gates
    monkeypatch.setattr(TimeExperts, "gates", lambda self, e: gates(self.probabilities(e), right(self, e)))
    assert found == failed(exact.mask_rows(0)) - {TOKENS}


def test_experts_that_are_merged_wrongly_are_found_out(monkeypatch):
    right = TimeExperts.merged

    def transposed(self, gates):
        weight, bias = right(self, gates)
        return weight.mT, bias

    monkeypatch.setattr(TimeExperts, "merged", transposed)
    assert {MASK, DENSE, TOKENS} <= failed(exact.mask_rows(0))


def test_experts_that_do_not_start_at_zero_are_found_out(monkeypatch):
    def reset(self, draws):
        self.weight.normal_(0.0, 0.02, generator=draws)

    monkeypatch.setattr(TimeExperts, "reset", reset)
    assert failed(exact.start_rows(16, 2, 0)) == {FRESH}


def test_a_wrong_prior_is_found_out(monkeypatch):
    right = exact.windows
    monkeypatch.setattr(exact, "windows", lambda *a: right(*a) * (torch.arange(12) > 0))
    assert "prior: slots at each level" in failed(exact.prior_rows(0))
    monkeypatch.setattr(exact, "windows", right)
    monkeypatch.setattr(exact, "match", lambda table, prior: torch.arange(prior.shape[1]))
    assert {"... its columns in disorder: entries off after the match", "... divergence then"} == failed(
        exact.prior_rows(0)
    )


def test_another_divergence_is_found_out(monkeypatch):
    monkeypatch.setattr(
        exact, "jensen_shannon", lambda u, v: (u * (u / v.clamp_min(1e-30)).clamp_min(1e-30).log()).sum(-1)
    )
    assert {"divergence of distributions", "... of two without a common slot"} <= failed(exact.prior_rows(0))


def test_gates_that_are_not_taught_are_found_out(monkeypatch):
    right = exact.ExpertPrior.divergence
    monkeypatch.setattr(exact.ExpertPrior, "divergence", lambda self, d, t: 0.0 * right(self, d, t) + 0.1)
    assert failed(exact.alone_rows(0)) == {
        "gates that learn the prior alone: divergence, against their start",
        "... entries off the windows, share",
    }


class TestRelations:
    """What is asked of trained gates, on gates made by hand."""

    windows = exact.windows(exact.LEVELS, 4, 3, 2)
    order = torch.arange(12).reshape(3, 4).mT.flatten()  # two of three experts of each block at each level
    right = windows[:, order].unflatten(1, (4, 3)) / 2

    def rows(self, gates, loss=0.9, divergence=0.01):
        bare = Trained(1.0, 0.1, torch.full((exact.LEVELS, 4, 3), 1 / 3))
        return failed(switch_dit._rows({PLAIN: Trained(1.0), BARE: bare, PRIOR: Trained(loss, divergence, gates)}))

    def test_the_windows_hold(self):
        assert self.rows(self.right) == set()

    def test_gates_that_never_change_do_not(self):
        assert {"... chosen slots off the windows, share", "... at 800 levels, against the windows'"} <= self.rows(
            self.right[:1].expand_as(self.right)
        )

    def test_gates_that_change_at_every_level_do_not(self):
        scattered = self.right[(torch.arange(exact.LEVELS) * 617) % exact.LEVELS]
        assert "experts not shared at 50 levels of 1000, over those at 800" in self.rows(scattered)

    def test_one_expert_of_two_and_worse_losses_do_not(self):
        sharp = self.right * torch.tensor([1.9, 1.5, 0.1])
        assert "entropy of the gates: log 2, two count alike" in self.rows(sharp)
        assert self.rows(self.right, loss=1.05, divergence=0.05) == {
            LOSS,
            "divergence from the prior, against experts without it",
        }
