"""Text as tokens: round trips, packing, the corpus of the standard library."""

import json

import pytest
import torch

import tweed as tw
from tweed.data import Corpus, load_tokenizer, pack, padded, train_tokenizer
from tweed.data.corpus import documents, texts
from tweed.errors import CheckpointError, InputError

WORDS = "Grüße, naïve 日本\n  tabs\tand — dashes [MASK] end"


def test_no_text_is_unknown_and_all_come_back():
    tokenizer = train_tokenizer(["some words, some more words"], 270)
    assert (tokenizer.mask, tokenizer.end, tokenizer.pad, tokenizer.size) == (0, 1, 2, 270)
    assert tokenizer.decode(tokenizer.encode(WORDS), special=True) == WORDS
    assert tokenizer.encode("a[MASK]b")[1] == 0
    assert tokenizer.encode("") == []
    bare = train_tokenizer([], 259)
    assert len(bare.encode("日本")) == 6


def test_a_tokenizer_is_a_file(tmp_path):
    tokenizer = train_tokenizer(["some words, some more words"], 270)
    tokenizer.write(tmp_path)
    back = load_tokenizer(tmp_path)
    assert back.json == tokenizer.json
    assert (back.mask, back.end, back.pad) == (0, 1, 2)
    with pytest.raises(CheckpointError, match="there is no such file"):
        load_tokenizer(tmp_path / "none")
    (tmp_path / "tokenizer.json").write_text('{"model": "nonsense"}')
    with pytest.raises(CheckpointError, match="it is no tokenizer"):
        load_tokenizer(tmp_path)


def test_what_a_tokenizer_does_not_know_is_named():
    from tokenizers import Tokenizer, models, pre_tokenizers

    inner = Tokenizer(models.WordLevel({"[UNK]": 0, "red": 1, "fox": 2}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = tw.data.TextTokenizer(inner)
    assert tokenizer.encode("red fox") == [1, 2]
    with pytest.raises(InputError, match="'dog' is an unknown token"):
        tokenizer.encode("red dog fox")


@pytest.mark.parametrize("length", [1, 4, 7, 100])
def test_packing_keeps_every_token_once_in_order(length):
    documents = [[5, 6, 7], [8], [], [9] * 10]
    data = pack(documents, length, 1, 2)
    stream = data.x.flatten()
    batch = data.batch(torch.arange(len(data)))
    kept = stream[~batch["fixed"].flatten()]
    assert kept.tolist() == [5, 6, 7, 1, 8, 1, 1] + [9] * 10 + [1]
    assert bool((stream[batch["fixed"].flatten()] == 2).all())
    assert batch["fixed"][:-1].sum() == 0
    # Within a row segments begin at 0, and go up by one behind each end.
    steps = batch["segments"].diff(dim=1)
    assert bool((batch["segments"][:, 0] == 0).all())
    assert torch.equal(steps == 1, (data.x[:, :-1] == 1) & (steps != 0))
    assert bool((steps[data.x[:, :-1] == 1] == 1).all())


def test_padding():
    assert padded([[1, 2], [3]], 0).tolist() == [[1, 2], [3, 0]]
    assert padded([[1, 2], [3]], 0, left=True, length=3).tolist() == [[0, 1, 2], [0, 0, 3]]
    assert padded([], 0).shape == (0, 0)
    with pytest.raises(InputError, match="length: 1"):
        padded([[1, 2]], 0, length=1)


def test_the_corpus_is_there_and_its_parts_are_apart():
    whole = documents()
    assert len(whole) > 1000
    train, test = texts("train"), texts("test")
    assert len(train) + len(test) == len(whole)
    held = {module for module, _ in whole if any(text in set(test) for text in [_])}
    assert 0.03 < sum(map(len, test)) / sum(map(len, train)) < 0.3
    names = {text.partition("\n")[0].split(".")[0] for text in test if text.partition("\n")[0].isidentifier()}
    assert held
    assert names
    assert any(text.startswith("json.dumps\n") or "json.dumps" in text for text in train + test)


def test_its_rows_hold_it():
    data = Corpus("test", length=64, vocabulary=300)
    assert data.shape == (64,)
    row = data[3]
    assert set(row) == {"x", "segments", "fixed"}
    assert data.tokenizer.decode(row["x"].tolist())
    assert 1.0 < data.characters_per_token < 3.0
    again = Corpus("test", length=64, vocabulary=300)
    assert torch.equal(again.batch(torch.arange(5))["x"], data.batch(torch.arange(5))["x"])


CONFIG = {
    "data": {"name": "Corpus", "split": "test", "length": 32, "vocabulary": 300},
    "network": {"name": "text-transformer", "vocab": 300, "width": 16, "depth": 1, "heads": 2},
    "process": {"name": "MaskedProcess", "mask": 0},
    "optimisation": {"steps": 4, "batch_size": 4},
}


@pytest.mark.parametrize("causal", [False, True])
def test_training_by_configuration_keeps_the_tokenizer(tmp_path, causal):
    config = json.loads(json.dumps(CONFIG))
    config["network"]["causal"] = causal
    if causal:
        config["objective"] = "NextTokenLoss"
    made = tw.training.TrainConfig.from_dict(config)
    result = tw.training.train(made, tmp_path / "run", progress=False, device="cpu")
    assert len(result.losses) == 4
    back = tw.load(tmp_path / "run")
    assert back.tokenizer.json == Corpus("test", 32, 300).tokenizer.json
    assert back.network.causal is causal
    again = tw.training.train(made.replace(steps=6), tmp_path / "run", progress=False, device="cpu")
    assert again.losses[:4] == result.losses


def test_mistakes_are_named():
    def config(**changes):
        return tw.training.TrainConfig.from_dict({**CONFIG, **changes})

    cases = [
        (lambda: train_tokenizer([], 100), "size: 100"),
        (lambda: pack([], 4, 1, 2), "documents: none"),
        (lambda: pack([[1]], 0, 1, 2), "length: 0"),
        (lambda: Corpus("valid"), "split"),
        (lambda: Corpus("test", 1, 300), "length: 1"),
        (lambda: tw.training.train(config(process={"name": "MaskedProcess", "mask": 7})), "process.mask: 7"),
        (lambda: tw.training.train(config(network={**CONFIG["network"], "vocab": 200})), "network.vocab: 200"),
        (lambda: tw.training.train(config(target="Noise")), "for tokens, which have none"),
    ]
    for call, words in cases:
        with pytest.raises(InputError, match=words):
            call()
