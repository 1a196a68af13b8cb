"""Reading long sequences: perplexity by chunks, needles in haystacks, and the recipe."""

import math

import pytest
import torch

import tweed as tw
from tweed.core.processes import MaskedProcess, UniformProcess
from tweed.core.token_denoiser import TokenDenoiser
from tweed.data import MarkovChain, TabularJoint
from tweed.errors import IncompatibleError, InputError
from tweed.recipes import long_llada
from tweed.recipes.registry import reproduce
from tweed.tokens import Blockwise
from tweed.tokens.chunked_perplexity import causal_chunk_perplexity, masked_chunk_perplexity
from tweed.tokens.needle import Needle, contained, edit_similarity, needle_grid, planted
from tweed.tokens.rope_scaling import extended

CHAIN = MarkovChain.random(5, spread=2.0, seed=4)
DOCUMENTS = CHAIN.sample(6, 50, 1)


class TestPerplexity:
    """Against laws that are known."""

    def test_a_chunk_of_one_token_has_the_chains_own_law(self):
        found = masked_chunk_perplexity(CHAIN.denoiser(), DOCUMENTS[:, :9], chunk=1, draws=2)
        right = -CHAIN.transition.log()[DOCUMENTS[:, :8], DOCUMENTS[:, 1:9]]
        torch.testing.assert_close(found.nats[:, 1:], right)
        torch.testing.assert_close(found.nats[:, 0], -CHAIN.initial.log()[DOCUMENTS[:, 0]])

    def test_one_mask_among_many_draws_is_the_mean_over_the_places(self):
        # Chunks of 2: one mask, at either place, or two; every set has its exact cross-entropy.
        found = masked_chunk_perplexity(CHAIN.denoiser(), DOCUMENTS[:1, :2], chunk=2, draws=4000, seed=3).nats[0, 0]
        x, total = DOCUMENTS[:1, :2], 0.0
        for masked, weight in (((0,), 0.25), ((1,), 0.25), ((0, 1), 0.5)):
            hidden = x.clone()
            hidden[:, list(masked)] = 5
            law = CHAIN.marginals(hidden)[0].log()
            total -= weight * sum(law[i, x[0, i]].item() for i in masked) / len(masked)
        assert found.item() == pytest.approx(total, abs=0.03)

    def test_the_number_of_masks_is_uniform_and_they_lie_in_the_chunk_alone(self):
        seen = []

        def network(x):
            seen.append(x.clone())
            return torch.zeros(*x.shape, 5)

        found = masked_chunk_perplexity(TokenDenoiser(network, MaskedProcess(5)), DOCUMENTS[:, :12], 4, 200)
        torch.testing.assert_close(found.perplexity, torch.full((3,), 5.0, dtype=torch.float64))
        for i in range(3):
            masks = torch.cat([x for x in seen if x.shape[1] == 4 * (i + 1)]) == 5
            assert not masks[:, : 4 * i].any()
            shares = torch.bincount(masks.sum(1), minlength=5) / len(masks)
            assert shares[0] == 0
            assert (shares[1:] - 0.25).abs().max() < 0.05
            assert (masks[:, 4 * i :].double().mean(0) - 0.625).abs().max() < 0.05

    def test_running_is_the_geometric_mean_so_far(self):
        found = masked_chunk_perplexity(CHAIN.denoiser(), DOCUMENTS, chunk=16, draws=3)
        assert found.ends == [16, 32, 48]
        for i in range(3):
            assert found.running[i].item() == pytest.approx(found.perplexity[: i + 1].log().mean().exp().item())

    def test_what_is_read_besides_does_not_matter(self):
        whole = masked_chunk_perplexity(CHAIN.denoiser(), DOCUMENTS, chunk=16, draws=3, seed=2)
        part = masked_chunk_perplexity(CHAIN.denoiser(), DOCUMENTS[:2, :33], chunk=16, draws=3, seed=2, batch=5)
        torch.testing.assert_close(part.nats, whole.nats[:2, :2])
        other = masked_chunk_perplexity(CHAIN.denoiser(), DOCUMENTS, chunk=16, draws=3, seed=3)
        assert (other.nats - whole.nats).abs().max() > 1e-3

    def test_a_network_that_reads_its_time_gets_that_of_its_masks(self):
        times = []

        def network(x, t):
            times.append((t.clone(), (x == 5).sum(1)))
            return torch.zeros(*x.shape, 5)

        denoiser = TokenDenoiser(network, MaskedProcess(5), timed=True)
        found = masked_chunk_perplexity(denoiser, DOCUMENTS, chunk=10, draws=2)
        torch.testing.assert_close(found.perplexity, torch.full((5,), 5.0, dtype=torch.float64))
        for t, masks in times:
            torch.testing.assert_close(t, masks.float() / 10)

    def test_a_causal_model_is_scored_on_each_token_given_those_before(self):
        net = tw.nets.build(
            {"name": "text-transformer", "vocab": 6, "width": 16, "depth": 1, "heads": 1, "causal": True}
        )
        denoiser = TokenDenoiser(net, MaskedProcess(5))
        found = causal_chunk_perplexity(denoiser, DOCUMENTS, 16, batch=4)
        for chunk in range(3):
            each = []
            for place in range(max(16 * chunk, 1), 16 * (chunk + 1)):
                law = net(DOCUMENTS[:, :place])[:, -1, :5].double().log_softmax(-1)
                each.append(-law.gather(1, DOCUMENTS[:, place : place + 1])[:, 0])
            torch.testing.assert_close(found.nats[:, chunk], torch.stack(each).mean(0), rtol=0, atol=1e-5)

    def test_errors_name_the_argument(self):
        denoiser = CHAIN.denoiser()
        for call, text in (
            (lambda: masked_chunk_perplexity(denoiser, DOCUMENTS, 64), "tokens"),
            (lambda: masked_chunk_perplexity(denoiser, DOCUMENTS[:0], 8), "tokens"),
            (lambda: masked_chunk_perplexity(denoiser, DOCUMENTS, 0), "chunk: 0"),
            (lambda: masked_chunk_perplexity(denoiser, DOCUMENTS, 8, 0), "draws: 0"),
        ):
            with pytest.raises(InputError, match=text):
                call()
        with pytest.raises(IncompatibleError, match="UniformProcess"):
            masked_chunk_perplexity(TabularJoint.random(3, 2).denoiser(UniformProcess(3)), DOCUMENTS, 8)
        with pytest.raises(IncompatibleError, match="no causal network"):
            causal_chunk_perplexity(denoiser, DOCUMENTS, 8)


def plain_edit_similarity(answer, text):
    """By the table, from the answer to every part of the text."""
    best = len(answer)
    for start in range(len(text) + 1):
        for stop in range(start, len(text) + 1):
            part = text[start:stop]
            costs = list(range(len(part) + 1))
            for i, a in enumerate(answer, 1):
                row = [i]
                for j, b in enumerate(part, 1):
                    row.append(min(row[-1] + 1, costs[j] + 1, costs[j - 1] + (a != b)))
                costs = row
            best = min(best, costs[-1])
    return 1.0 - best / len(answer)


class TestNeedles:
    """Scores, prompts, and the grid."""

    def test_edit_similarity_is_that_of_the_best_part(self):
        answer = (3 * tw.random.uniform((30, 4), 1)).long()
        text = (3 * tw.random.uniform((30, 7), 2)).long()
        right = [plain_edit_similarity(a, t) for a, t in zip(answer.tolist(), text.tolist(), strict=True)]
        torch.testing.assert_close(edit_similarity(answer, text), torch.tensor(right, dtype=torch.float64))
        assert len(set(right)) > 2
        assert torch.equal(contained(answer, text) == 1.0, torch.tensor(right) == 1.0)

    def test_scores_at_the_ends(self):
        answer = torch.tensor([[1, 2, 3]])
        for text, exact, edit in (([0, 1, 2, 3], 1, 1), ([1, 2, 0, 3], 0, 2 / 3), ([4, 4], 0, 0), ([2], 0, 1 / 3)):
            assert contained(answer, torch.tensor([text])).item() == exact
            assert edit_similarity(answer, torch.tensor([text])).item() == pytest.approx(edit)
        with pytest.raises(InputError, match="answer, text"):
            contained(answer, torch.zeros(2, 4))

    def test_a_needle_is_planted_at_its_depth(self):
        hay, needle, question = torch.zeros(20, dtype=torch.long), torch.tensor([7, 8]), torch.tensor([7])
        for depth, place in ((0.0, 0), (0.5, 5), (1.0, 10)):
            x = planted(hay, needle, question, length=16, depth=depth, new=3, mask=9)
            assert len(x) == 16
            assert x[place : place + 2].tolist() == [7, 8]
            assert x[12:].tolist() == [7, 9, 9, 9]
            assert (x == 0).sum() == 10
        for options in ({"length": 40}, {"length": 5}, {"depth": -0.1}, {"new": 0}):
            with pytest.raises(InputError):
                planted(hay, needle, question, **{"length": 16, "depth": 0.5, "new": 3, "mask": 9, **options})

    def test_a_reader_of_short_sight_finds_near_needles_alone(self):
        # Copies what follows the last 7 within its sight.
        def network(x, sight=10):
            logits = torch.zeros(*x.shape, 9)
            for row in range(len(x)):
                at = [i for i in range(max(0, x.shape[1] - sight), x.shape[1] - 2) if x[row, i] == 7]
                if at:
                    logits[row, -1, x[row, at[-1] + 1]] = 5.0
            return logits

        def prompts(length, depth):
            hay, needle = torch.zeros(64, dtype=torch.long), torch.tensor([7, 3])
            x = planted(hay, needle, torch.tensor([7]), length=length, depth=depth, new=1, mask=9)
            return Needle(x.expand(3, -1), torch.tensor([[3]]).expand(3, -1))

        grid = needle_grid(TokenDenoiser(network, MaskedProcess(9)), prompts, [8, 24], [0.0, 0.5, 1.0], batch=2)
        assert grid.scores.tolist() == [[1.0, 1.0, 1.0], [0.0, 0.0, 1.0]]
        assert (grid.lengths, grid.depths, grid.calls) == ((8, 24), (0.0, 0.5, 1.0), 12)

    def test_answers_of_several_tokens_are_decoded_one_a_step(self):
        joint_order = torch.arange(40) % 7

        def network(x):
            # What is masked continues its left neighbour.
            before = torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), 1)
            sure = torch.where(before < 7, 6.0, 0.0)[..., None]
            return sure * torch.nn.functional.one_hot((before + 1) % 7, 7)

        denoiser = TokenDenoiser(network, MaskedProcess(7))

        def prompts(length, depth):
            x = joint_order[:length].clone()
            x[-5:] = 7
            return Needle(x[None], joint_order[None, length - 5 : length])

        grid = needle_grid(denoiser, prompts, [20], [0.0])
        assert (grid.scores.item(), grid.calls) == (1.0, 5)
        # Two blocks, of 3 and 2, want as many steps each.
        assert needle_grid(denoiser, prompts, [20], [0.0], solver=Blockwise(3)).calls == 6
        at_once = needle_grid(denoiser, prompts, [20], [0.0], steps=1, score="edit")
        assert at_once.calls == 1
        assert at_once.scores.item() < 1.0

    def test_errors_name_the_argument(self):
        denoiser = TokenDenoiser(lambda x: torch.zeros(*x.shape, 9), MaskedProcess(9))
        full = Needle(torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, 1, dtype=torch.long))
        with pytest.raises(InputError, match="prompts"):
            needle_grid(denoiser, lambda length, depth: full, [4], [0.0])
        with pytest.raises(InputError, match="lengths, depths"):
            needle_grid(denoiser, lambda length, depth: full, [], [0.0])
        with pytest.raises(InputError, match="score"):
            needle_grid(denoiser, lambda length, depth: full, [4], [0.0], score="half")  # type: ignore[arg-type]
        uniform = TabularJoint.random(3, 4).denoiser(UniformProcess(3))
        with pytest.raises(IncompatibleError, match="MaskedProcess"):
            needle_grid(uniform, lambda length, depth: full, [4], [0.0])


class TestRecipe:
    """At the smallest scale."""

    def test_every_relation_holds_and_is_written(self, tmp_path):
        report = reproduce("long-llada", seed=3, scale="smoke")
        assert report.holds, [(row.quantity, row.here, row.baseline) for row in report.failed]
        names = {path.name for path in report.write(tmp_path).iterdir()}
        figures = {"coverage", "needle", "distance", "factor", "perplexity"}
        assert names == {f"{name}.png" for name in figures} | {"report.json", "report.md"}

    def test_positions_scaled_in_place_of_the_base_are_found_out(self, monkeypatch):
        from tweed.recipes import _long_llada_exact as parts

        monkeypatch.setattr(parts, "ntk_rope_base", lambda base, dim, train, target: base * target / train)
        failed = {row.quantity for row in parts.factors() if row.holds is False}
        assert "LLaDA-8B: factor at 32768" in failed
        assert "slower pairs: angle at the target over the largest of training, highest of all" in failed

    def test_needles_are_as_far_as_they_are_said_to_be(self):
        made = long_llada.needles(16, 1)(128, 0.0)
        assert long_llada.distances(128, (0.0,))[0] == pytest.approx(125.5, abs=0.5)
        rows, columns = (made.start[:, :-2] < long_llada.TASK.keys).nonzero(as_tuple=True)
        assert len(rows) == 16
        assert set(columns.tolist()) <= {0, 1}
        assert (made.start[:, -1] == long_llada.TASK.size).all()
        assert math.isclose(extended(long_llada._denoiser(17, 1), 128).network.rope_base, 300.0)  # type: ignore[attr-defined]
