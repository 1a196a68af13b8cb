"""`import tweed` is light: little more than `import torch`."""

import os
import resource
import statistics
import subprocess
import sys

import pytest

HEAVY = {
    "matplotlib",
    "scipy",
    "sklearn",
    "rich",
    "accelerate",
    "ot",
    "tyro",
    "torchdiffeq",
    "diffusers",
    "transformers",
    "PIL",
    "tensorboard",
    "pandas",
    "safetensors",
    "huggingface_hub",
}


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return result.stdout


def test_importing_tweed_imports_nothing_heavy_and_rooms_at_their_first_use():
    code = """
import sys
import torch
before = set(sys.modules)
import tweed
print(*{name.split(".")[0] for name in set(sys.modules) - before})
print(*{name.split(".")[1] for name in sys.modules if name.startswith("tweed.")})
print("sample" in dir(tweed), "solvers" in dir(tweed))
try:
    tweed.nothing
except AttributeError as error:
    print(error)
print(tweed.solvers.__name__, tweed.sample.__module__)
"""
    imported, rooms, listed, message, used = run(code).splitlines()
    assert not HEAVY & set(imported.split())
    assert set(rooms.split()) == {"core", "errors"}
    assert listed == "True True"
    assert "no attribute 'nothing'" in message
    assert used.split()[0] == "tweed.solvers"
    assert used.split()[1].startswith("tweed.solvers")


def seconds(code: str) -> float:
    """CPU time of a fresh interpreter that runs `code`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.slow
def test_importing_tweed_takes_little_longer_than_importing_torch():
    # Processor time, in turns, so that a busy machine weighs on both alike; the least of each is the cleanest.
    torch_times, tweed_times = [], []
    for _ in range(3):
        torch_times.append(seconds("import torch"))
        tweed_times.append(seconds("import tweed"))
    ratio = min(min(tweed_times) / min(torch_times), statistics.median(tweed_times) / statistics.median(torch_times))
    print(f"import tweed / import torch: {ratio:.3f} ({min(tweed_times):.2f} s / {min(torch_times):.2f} s)")
    assert ratio <= 1.2
