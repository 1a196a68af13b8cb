import math

import pytest
import torch

from tweed.core.random import normal
from tweed.data import Digits, Glyphs, Tensors, ring_mixture
from tweed.errors import CheckpointError, InputError
from tweed.metrics import (
    Classifier,
    accuracy,
    confusion,
    entropy_score,
    features,
    frechet_distance,
    load_classifier,
    log_probabilities,
    save_classifier,
    train_classifier,
)


def _all(data):
    return data.batch(torch.arange(len(data)))


@pytest.fixture(scope="module")
def digits():
    return train_classifier(Digits("train"), steps=200, seed=0, shift=1), _all(Digits("test"))


def test_it_reads_handwritten_digits(digits):
    classifier, test = digits
    assert accuracy(classifier, test["x"], test["label"]) > 0.97
    # With the labels moved by one, only what it gets wrong can be right.
    assert accuracy(classifier, test["x"], (test["label"] + 1) % 10) < 0.02


def test_it_reads_glyphs_that_differ():
    kw = {"size": 16, "characters": "ACX7"}
    classifier = train_classifier(Glyphs(**kw), steps=60, seed=1, width=8)
    test = _all(Glyphs(split="test", **kw))
    assert accuracy(classifier, test["x"], test["label"]) > 0.99


def test_vectors_pass_a_perceptron_and_reach_the_bayes_rate():
    # Neighbouring components 0.765 apart with std 0.25 overlap: the rate of the exact posterior is the best there is.
    mixture = ring_mixture(8, radius=1.0, std=0.25)

    def draw(n, seed):
        return mixture.sample(n, seed), mixture.choose(n, seed)

    x, label = draw(4000, 0)
    classifier = train_classifier(Tensors(x, label=label), steps=300, seed=0)
    x, label = draw(4000, 1)
    best = float((mixture.log_joint(x).argmax(1) == label).double().mean())
    assert best < 0.95
    assert abs(accuracy(classifier, x, label) - best) < 0.02


def test_training_is_deterministic_and_draws_nothing_global():
    data = Digits("train")
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = train_classifier(data, steps=3, seed=5, width=8)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1)
    again, other = (train_classifier(data, steps=3, seed=seed, width=8) for seed in (5, 6))
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert not torch.equal(first.head.weight, other.head.weight)


def test_confusion_counts_every_sample_once(digits):
    classifier, test = digits
    table = confusion(classifier, test["x"], test["label"])
    assert torch.equal(table.sum(1), torch.bincount(test["label"]))
    right = float(table.diagonal().sum()) / len(test["x"])
    assert right == pytest.approx(accuracy(classifier, test["x"], test["label"]))


def test_the_chunk_does_not_matter(digits):
    classifier, test = digits
    for function in (features, log_probabilities):
        assert torch.allclose(
            function(classifier, test["x"], chunk=7), function(classifier, test["x"]), atol=1e-4, rtol=1e-4
        )
    assert torch.allclose(
        log_probabilities(classifier, test["x"]).exp().sum(1), torch.ones(len(test["x"]), dtype=torch.float64)
    )


def test_features_tell_digits_from_noise(digits):
    classifier, test = digits
    train = _all(Digits("train"))["x"]
    near = frechet_distance(features(classifier, train), features(classifier, test["x"]))
    noise = normal(tuple(test["x"].shape), 0)
    assert near < 0.1 * frechet_distance(features(classifier, train), features(classifier, noise))


class _Table(Classifier):
    """Says with certainty the class written in the sample, or nothing where a negative one is."""

    def forward(self, x):
        return 1e3 * torch.nn.functional.one_hot(x[:, 0].long().clamp_min(0), 4).float() * (x[:, :1] >= 0)


def test_entropy_score_counts_the_classes_shown():
    table = _Table((1,), 4)
    shown = torch.arange(40)[:, None]
    assert entropy_score(table, (shown % 4).float()) == pytest.approx(4.0)
    assert entropy_score(table, (shown % 2).float()) == pytest.approx(2.0)
    assert entropy_score(table, torch.zeros(5, 1)) == pytest.approx(1.0)
    assert entropy_score(table, -torch.ones(5, 1)) == pytest.approx(1.0)
    # A quarter of one class: exp of the entropy of (1/4, 3/4).
    skewed = torch.tensor([0.0, 1.0, 1.0, 1.0])[:, None]
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert entropy_score(table, skewed) == pytest.approx(math.exp(entropy))


def test_entropy_score_of_digits(digits):
    classifier, test = digits
    assert entropy_score(classifier, test["x"]) > 8.0
    ones = test["x"][test["label"] == 1]
    assert entropy_score(classifier, ones) < 1.5


def test_saving_and_loading(digits, tmp_path):
    classifier, test = digits
    path = tmp_path / "digits.safetensors"
    save_classifier(classifier, path)
    assert [p.name for p in tmp_path.iterdir()] == ["digits.safetensors"]
    loaded = load_classifier(path)
    assert loaded.settings == classifier.settings
    assert torch.equal(log_probabilities(loaded, test["x"]), log_probabilities(classifier, test["x"]))
    (tmp_path / "bad").write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="bad"):
        load_classifier(tmp_path / "bad")
    with pytest.raises(CheckpointError, match="none"):
        load_classifier(tmp_path / "none")
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(2)}, tmp_path / "other", {"format": "other"})
    with pytest.raises(CheckpointError, match="format"):
        load_classifier(tmp_path / "other")


def test_bad_input_is_named(digits):
    classifier, test = digits
    x, label = test["x"], test["label"]
    vectors = Tensors(torch.zeros(4, 3), label=torch.arange(4))
    for call, argument in [
        (lambda: accuracy(classifier, x[:0], label[:0]), "x"),
        (lambda: accuracy(classifier, x[:, :, :4], label), "x"),
        (lambda: accuracy(classifier, x, label[:3]), "label"),
        (lambda: confusion(classifier, x, label + 5), "label"),
        (lambda: entropy_score(classifier, x[:0]), "x"),
        (lambda: train_classifier(Tensors(torch.zeros(4, 3))), "data"),
        (lambda: train_classifier(Tensors(torch.zeros(0, 3), label=torch.zeros(0, dtype=torch.int64))), "data"),
        (lambda: train_classifier(vectors, steps=0), "steps"),
        (lambda: train_classifier(vectors, shift=1), "shift"),
        (lambda: Classifier((3, 4), 10), "shape"),
        (lambda: Classifier((3,), 1), "classes"),
    ]:
        with pytest.raises(InputError, match=f"^{argument}"):
            call()
    assert accuracy(classifier, x[:1], label[:1]) in (0.0, 1.0)
