"""What a sampling loop costs beyond the network: microseconds a step with a network that does nothing."""

import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tweed.cli._bench import peers
from tweed.core import grids, processes, random, targets
from tweed.core.denoiser import NetworkDenoiser
from tweed.recipes._timing import in_turns, median_ratio
from tweed.recipes.report import Progress, span
from tweed.solvers import BDIA, DDIM, DEIS, EDICT, DPMSolver, EVODiff, Heun, Problem, Solver, TimeShift, UniPC, sample

OURS: dict[str, Solver] = {
    "DDIM": DDIM(),
    "DPMSolver(order=2)": DPMSolver(order=2),
    "DPMSolver(order=3)": DPMSolver(order=3),
    "UniPC": UniPC(),
    "DEIS": DEIS(),
    "Heun": Heun(),
    "BDIA": BDIA(),
    "EDICT": EDICT(),
    "EVODiff": EVODiff(),
    "TimeShift": TimeShift(),
}
MAIN = "DPMSolver(order=2)"
THEIRS = {
    "DDIMScheduler": {},
    "DPMSolverMultistepScheduler": {"solver_order": 2},
    "UniPCMultistepScheduler": {"solver_order": 2},
    "DEISMultistepScheduler": {"solver_order": 3},
}
REFERENCE = "diffusers DPMSolverMultistepScheduler"
BOUND, GPU_BOUND = 0.1, 0.125
SHAPE = (4, 16)

# Operations by which a value of the device is read by the host.
_READS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "item", "masked_select", "unique")


def run(rounds: int, steps: int, progress: Progress) -> dict[str, Any]:
    """All rows in microseconds a step, the ratio to diffusers', the host's reads; the GPU's part where there is one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = _cpu(rounds, steps, span(progress, 0.0, 0.9))
    finally:
        torch.set_num_threads(threads)
    if torch.cuda.is_available():
        progress("the GPU", 0.9)
        result["gpu"] = _gpu(rounds)
        result["holds"] = result["holds"] is not False and result["gpu"]["holds"]
    return result


def _cpu(rounds: int, steps: int, progress: Progress) -> dict[str, Any]:
    denoiser, times = _denoiser(), tuple(grids.log_snr(processes.VP(), steps, end=1e-3).tolist())
    x = random.normal(SHAPE, 0)
    problem = Problem(denoiser, times)

    def ours(solver: Solver) -> Callable[[], Tensor]:
        return torch.no_grad()(lambda: solver.integrate(problem, x))

    runs: dict[str, Callable[[], object]] = {f"tweed {name}": ours(solver) for name, solver in OURS.items()}
    runs |= _starts(steps)
    runs["tweed.sample, all of it"] = lambda: sample(denoiser, x, solver=OURS[MAIN], times=times)
    if importlib.util.find_spec("diffusers") is not None:
        runs |= {f"diffusers {name}": _loop(name, steps, x, **options) for name, options in THEIRS.items()}
    # This thread's own time: other programs of the machine do not count.
    measured = in_turns(runs, rounds, clock=time.thread_time, progress=progress)
    base = measured.get(REFERENCE)
    rows = [
        {
            "run": name,
            "us_per_step": 1e6 * statistics.median(values) / steps,
            "us_per_step_min": 1e6 * min(values) / steps,
            "ratio": None if base is None else median_ratio(values, base),
            "host_reads": _host_reads(runs[name]),
        }
        for name, values in measured.items()
    ]
    main = next(row for row in rows if row["run"] == f"tweed {MAIN}")
    holds = main["host_reads"] == 0 and (base is None or main["ratio"] <= BOUND)
    return {
        "bench": "overhead",
        "shape": list(SHAPE),
        "steps": steps,
        "rounds": rounds,
        "rows": rows,
        "ratio": main["ratio"],
        "bound": BOUND,
        "host_reads": main["host_reads"],
        "peers": peers.versions(),
        "holds": None if base is None and holds else holds,
        "gpu": None,
    }


def _starts(steps: int) -> dict[str, Callable[[], object]]:
    """What starts cost beside the network, as if a step: a jump of four images, and an iteration of a chain."""
    from tweed.core.exact import MixtureDenoiser, fit_gaussian
    from tweed.starts import DenoisingMCMC, ExactNoiseLevel, gaussian_jump, log_levels

    process = processes.VP()
    data = random.normal((64, SHAPE[1]), 1)
    gaussian, model = fit_gaussian(data, process), MixtureDenoiser(data[:4], 0.1, None, process)
    kernel, denoiser = DenoisingMCMC(ExactNoiseLevel(model, log_levels(0.02, 10.0, 50))), _denoiser()
    chain = kernel.begin(random.normal(SHAPE, 2))
    x = random.normal(SHAPE, 3)

    def jump() -> object:
        return [gaussian_jump(gaussian, x, 0.5) for _ in range(steps)]

    @torch.no_grad()
    def move() -> object:
        return [kernel.move(denoiser, chain) for _ in range(steps)]

    return {"tweed start, gaussian_jump": jump, "tweed start, DenoisingMCMC.move": move}


def _denoiser(device: str = "cpu") -> NetworkDenoiser:
    def network(x: Tensor, t: Tensor) -> Tensor:
        return x

    return NetworkDenoiser(network, processes.VP(), targets.Noise()).to(device)


def _loop(name: str, steps: int, x: Tensor, network: Callable = lambda x, t: x, **options: Any) -> Callable[[], Tensor]:
    """The scheduler's own loop; setting its time steps is not counted."""
    import diffusers

    scheduler = getattr(diffusers, name)(**options)

    @torch.no_grad()
    def loop() -> Tensor:
        state = x
        for t in scheduler.timesteps:
            state = scheduler.step(network(state, t), t, state).prev_sample
        return state

    def run() -> Tensor:
        # A second run of the same time steps, without the work of `set_timesteps`.
        if hasattr(scheduler, "_step_index"):
            scheduler._step_index, scheduler.lower_order_nums = None, 0
            scheduler.model_outputs = [None] * len(getattr(scheduler, "model_outputs", ()))
            scheduler.last_sample = None
        return loop()

    scheduler.set_timesteps(steps, device=x.device)
    return run


class _Reads(TorchDispatchMode):
    """Counts the operations that hand a value of a tensor to Python."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ in _READS
        return func(*args, **(kwargs or {}))


def _host_reads(run: Callable[[], object]) -> int:
    run()
    with _Reads() as reads:
        run()
    return reads.count


@contextmanager
def _no_synchronisation() -> Iterator[None]:
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def _gpu(rounds: int, steps: int = 10) -> dict[str, Any]:
    """A batch-1 sample with a network of a policy's size, as a loop and as a CUDA graph, beside diffusers' loop."""
    from tweed import nets

    network = nets.build({"name": "mlp", "dim": SHAPE[1]}).cuda().eval()
    denoiser = NetworkDenoiser(network, processes.VP(), targets.Noise())
    problem = Problem(denoiser, tuple(grids.log_snr(processes.VP(), steps, end=1e-3).tolist()))
    x, solver = random.normal((1, SHAPE[1]), 0, device="cuda"), OURS[MAIN]

    @torch.no_grad()
    def ours() -> Tensor:
        return solver.integrate(problem, x)

    # On a side stream first, as capturing asks for.
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        expected = ours()
        with _no_synchronisation():
            ours()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ours()
    graph.replay()
    torch.cuda.synchronize()
    difference = (captured - expected).abs().max().item()
    runs: dict[str, Callable[[], object]] = {"tweed": ours, "tweed, CUDA graph": graph.replay}
    if importlib.util.find_spec("diffusers") is not None:

        def theirs(state: Tensor, t: Tensor) -> Tensor:
            return network(state, (t / 1000.0).to(x).expand(1))

        runs[REFERENCE] = _loop("DPMSolverMultistepScheduler", steps, x, theirs, solver_order=2)
    measured = in_turns(runs, rounds)
    base = measured.get(REFERENCE)
    rows = [
        {
            "run": name,
            "us_per_sample": 1e6 * statistics.median(values),
            "ratio": None if base is None else median_ratio(values, base),
        }
        for name, values in measured.items()
    ]
    ratio = rows[1]["ratio"]
    return {
        "device": torch.cuda.get_device_name(),
        "steps": steps,
        "rows": rows,
        "synchronisations": 0,
        "graph_difference": difference,
        "bound": GPU_BOUND,
        "holds": difference < 1e-5 and (ratio is None or ratio <= GPU_BOUND),
    }


def figure(result: dict[str, Any]) -> Any:
    """Microseconds a step of every run."""
    from matplotlib.figure import Figure

    rows = sorted(result["rows"], key=lambda row: -row["us_per_step"])
    made = Figure(figsize=(7.0, 0.34 * len(rows) + 0.9), layout="constrained")
    axes = made.subplots()
    colors = ["#1f6fb4" if row["run"].startswith("tweed") else "#7a7a7a" for row in rows]
    bars = axes.barh([row["run"] for row in rows], [row["us_per_step"] for row in rows], color=colors)
    axes.bar_label(bars, [f"{row['us_per_step']:.0f}" for row in rows], padding=3, fontsize=8)
    axes.set(xlabel="microseconds a step, one thread")
    axes.tick_params(axis="y", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return made
