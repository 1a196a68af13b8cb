"""`tweed text`: prompts, infilling, caches, guides and bad input, on tiny models."""

import json

import pytest
import torch

import tweed as tw
from tweed.cli import main
from tweed.core.processes import MaskedProcess
from tweed.core.token_denoiser import TokenDenoiser
from tweed.data import train_tokenizer

TOKENIZER = train_tokenizer(["the red fox and the dog"] * 3, 270)


def save(folder, *, causal=False, context=64, tokenizer=TOKENIZER, seed=1):
    config = {"name": "text-transformer", "vocab": tokenizer.size, "width": 16, "depth": 1, "heads": 2}
    net = tw.nets.build({**config, "context": context, "causal": causal}, seed)
    denoiser = TokenDenoiser(net, MaskedProcess(0), event=(context,))
    denoiser.tokenizer = tokenizer
    tw.save(denoiser, folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def guide(tmp_path_factory):
    return save(tmp_path_factory.mktemp("guide"), causal=True, seed=2)


def text(capsys, *words):
    code = main(["text", *words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_prompt_is_continued_and_the_cost_told(model, capsys, tmp_path):
    code, out, err = text(
        capsys, model, "--prompt", "the red", "--length", "16", "--block", "8", "--out", str(tmp_path / "t")
    )
    assert code == 0
    assert out.startswith("the red")
    assert "tokens/s, 16 calls" in err or "tokens/s, 8 calls" in err
    assert (tmp_path / "t").read_text().startswith("the red")


@pytest.mark.parametrize(
    "options",
    [
        ("--steps", "4"),
        ("--threshold", "0.5"),
        ("--cache", "free"),
        ("--cache", "prefix", "--threshold", "0.2"),
        ("--cache", "dual"),
        ("--remask", "rcr", "--temperature", "1"),
        ("--solver", "first-hitting", "--temperature", "1", "--tokens-per-call", "4"),
        ("--scale", "2"),
        ("--target-length", "100"),
        ("--confidence", "entropy"),
    ],
)
def test_every_way_of_decoding_ends_in_text(model, capsys, options):
    words = (model, "--prompt", "the red", "--length", "16", "--block", "8", "--n", "2", "--json")
    code, out, _ = text(capsys, *words, *options)
    assert code == 0
    facts = json.loads(out)
    assert len(facts["texts"]) == 2
    assert all(each.startswith("the red") for each in facts["texts"])
    assert facts["tokens_per_second"] > 0
    again = json.loads(text(capsys, *words, *options)[1])
    assert again["texts"] == facts["texts"]


def test_a_guide_judges_and_its_calls_are_told(model, guide, capsys):
    code, out, _ = text(
        capsys, model, "--prompt", "the", "--length", "12", "--guide", guide, "--accept", "greedy", "--json"
    )
    facts = json.loads(out)
    assert code == 0
    assert facts["guide_calls"] >= 1
    judge = tw.load(guide)
    row = TOKENIZER.encode("the")
    with torch.no_grad():
        for _ in range(12):
            logits = judge.network(torch.tensor([row]))[0, -1]
            row.append(int(logits.index_fill(0, torch.tensor([0]), -torch.inf).argmax()))
    given = len(TOKENIZER.encode("the"))
    if 1 in row[given:]:
        row = row[: given + row[given:].index(1)]
    assert facts["texts"] == [TOKENIZER.decode(row)]


def test_holes_are_filled_and_the_rest_stays(model, capsys):
    code, out, _ = text(capsys, model, "--infill", "the [MASK] fox [MASK][MASK] dog", "--json")
    assert code == 0
    written = json.loads(out)["texts"][0]
    assert written.startswith("the ")
    assert " fox " in written
    assert written.endswith(" dog")
    assert json.loads(out)["calls"] <= 20


def test_bad_input_ends_in_two_and_says_what(model, guide, capsys, tmp_path):
    other = save(tmp_path / "other", causal=True, tokenizer=train_tokenizer(["words"], 265))
    cases = [
        ((model, "--prompt", "the", "--length", "200"), "expected at most 64"),
        ((model, "--prompt", "the", "--length", "80", "--target-length", "70"), "target_length: 70"),
        ((model, "--prompt", "the", "--steps", "0"), "expected positive numbers"),
        ((model, "--infill", "no holes"), "it has no [MASK]"),
        ((model, "--infill", "a [MASK]", "--prompt", "b"), "either --infill or --prompt"),
        (
            (model, "--prompt", "a", "--length", "8", "--guide", other),
            "is another; expected the model",
        ),
        ((model, "--prompt", "a", "--length", "8", "--guide", model), "is not causal"),
        (
            (model, "--prompt", "a", "--length", "8", "--solver", "first-hitting", "--cache", "free"),
            "which writes anywhere",
        ),
        ((model, "--prompt", "a", "--length", "8", "--threshold", "0.9", "--steps", "3"), "takes as many as it needs"),
        ((model, "--scale", "2"), "needs a --prompt"),
        (("glyphs", "--prompt", "a"), "makes no text"),
        (("someone/no-such-model", "--prompt", "a"), "not found"),
    ]
    for words, told in cases:
        code, out, err = text(capsys, *words)
        assert code == 2, words
        assert told in err, (words, err)
        assert out == ""
