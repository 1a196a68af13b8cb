"""The Radon transform and filtered back-projection beside scikit-image's: as close to the phantom, and faster."""

import time

import numpy as np
import pytest
import torch

from tweed.core import random
from tweed.data.phantoms import shepp_logan
from tweed.inverse.operators.radon import Radon, parallel_angles

transform = pytest.importorskip("skimage.transform")
pytestmark = pytest.mark.parity

SIZE, VIEWS = 256, 180


def theirs(image, views=VIEWS):
    angles = np.arange(views) * 180.0 / views
    shadows = transform.radon(image, angles, circle=False)
    return transform.iradon(shadows, angles, circle=False, output_size=len(image))


def ours(radon, x):
    return radon.filtered_back_projection(radon(x))


def rms(x):
    return float(np.sqrt(np.mean(np.square(x))))


def test_as_close_to_the_phantom_and_faster():
    x = shepp_logan(SIZE).double()
    image = x[0, 0].numpy()
    radon = Radon((1, SIZE, SIZE), parallel_angles(VIEWS))
    ours(radon, x)  # the matrix is built once
    times, found = {"ours": [], "theirs": []}, {}
    for _ in range(2):
        for name, run in (("ours", lambda: ours(radon, x)[0, 0].numpy()), ("theirs", lambda: theirs(image))):
            start = time.perf_counter()
            found[name] = run()
            times[name].append(time.perf_counter() - start)
    assert rms(found["ours"] - image) < 1.02 * rms(found["theirs"] - image)
    # Some twenty times as fast on a quiet machine; a busy one must not decide this test.
    assert min(times["ours"]) < min(times["theirs"]), times


def test_the_same_reconstruction_of_a_smooth_image():
    size, views = 128, 90
    # Edges are where two discretisations differ; there are none in this one.
    line = (torch.arange(size, dtype=torch.float64) + 0.5) * 2.0 / size - 1.0
    x = torch.zeros(1, 1, size, size, dtype=torch.float64)
    for cx, cy, width, height in (random.uniform((5, 4), 4, dtype=torch.float64) * 0.8 - 0.4).tolist():
        squared = (line - cx) ** 2 + (line[:, None] - cy) ** 2
        x += (height + 1.0) * torch.exp(-0.5 * squared / (0.12 + 0.1 * width) ** 2)
    image = x[0, 0].numpy()
    radon = Radon((1, size, size), parallel_angles(views))
    assert rms(ours(radon, x)[0, 0].numpy() - theirs(image, views)) < 0.02 * rms(image)
