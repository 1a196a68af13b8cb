"""Find the time grid on which a solver's few steps suit a model best."""

from pathlib import Path
from typing import Annotated

import tyro

from tweed.cli._console import console, print_json, print_table, progress_bar
from tweed.errors import InputError

EXAMPLES = (
    "tweed grid glyphs --steps 8 --out glyphs-8.json",
    "tweed grid runs/digits --solver 'DPMSolver(order=2)' --steps 12 --keep",
    "tweed sample glyphs --solver UniPC --steps 8 --grid glyphs-8.json",
)


def run(
    model: Annotated[str, tyro.conf.Positional],
    *,
    solver: str = "UniPC",
    steps: int = 10,
    scale: float = 1.0,
    starts: int = 16,
    tries: int = 4,
    seed: int = 0,
    keep: bool = False,
    out: Path = Path("grid.json"),
    json: bool = False,
) -> int:
    """Fit a time grid to a model: the levels at which a solver comes closest to the converged solution.

    Args:
        model: A bundled name (glyphs), a checkpoint's folder, or a Hugging Face Hub id.
        solver: A deterministic solver and its options, such as "UniPC(order=3)".
        steps: Steps of the grid.
        scale: Classifier-free guidance of the runs that are fitted; 1 is the plain (conditional) model.
        starts: Samples that the grid is fitted to, with the model's classes in turn.
        tries: Coarse fits from different grids; time is nearly proportional to it.
        seed: Of the starts.
        keep: Write the grid into the model's own folder too, where `tweed sample --grid fitted` finds it.
        out: The file for the grid.
        json: Print the grid as JSON on stdout.
    """
    from tweed.recipes._cases import loaded
    from tweed.solvers import fit_grid, keep_grid
    from tweed.solvers.registry import describe, parse
    from tweed.training import load, save
    from tweed.training.checkpoint import bundled
    from tweed.training.files import write_json

    if starts < 1 or out.suffix != ".json":
        raise InputError(
            f"starts, out: {starts}, {str(out)!r} were given; expected at least 1, and a file that ends in .json"
        )
    if keep and (model in bundled() or not Path(model).is_dir()):
        raise InputError(f"keep: {model!r} is not a folder of yours; leave it out, and use the file")
    chosen = parse(solver)
    case = loaded(model, starts, seed, None, scale)
    with progress_bar(f"grid {model}") as progress:
        found = fit_grid(
            case.denoiser, chosen, steps, starts=case.x, end=case.end, tries=tries, tolerance=2e-3, progress=progress
        )
    write_json(out, found.as_dict())
    if keep:
        plain = load(model)
        keep_grid(plain, found)
        save(plain, model)
    if json:
        print_json(found.as_dict() | {"out": str(out)})
        return 0
    rows = [(str(k), f"{level:.3f}") for k, level in enumerate(found.log_snr)]
    print_table(
        ("level", "log(alpha / sigma)"),
        rows,
        title=f"{describe(chosen)}, {steps} steps",
        right=("level", "log(alpha / sigma)"),
    )
    gain = f"error {found.error:.3g}, against {found.baseline:.3g} on the best fixed grid"
    console().print(f"{gain} (geometric mean over {starts} starts): {out}", markup=False)
    return 0
