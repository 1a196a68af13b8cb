"""Train a model from a configuration."""

from pathlib import Path
from typing import Annotated

import tyro

from tweed.cli._console import console, print_json, print_table

EXAMPLES = (
    "tweed train digits",
    "tweed train mine.toml --out runs/mine --steps 2000",
    "accelerate launch --num-processes 2 -m tweed train digits",
)


def run(
    config: Annotated[str, tyro.conf.Positional],
    *,
    out: Path | None = None,
    steps: int | None = None,
    seed: int | None = None,
    device: str | None = None,
    restart: bool = False,
    quiet: bool = False,
    json: bool = False,
) -> int:
    """Train a model from a configuration; the same command again resumes an interrupted run.

    Args:
        config: A TOML file, or a configuration that tweed brings: digits, glyphs, speech, speech-direct, text or text-causal.
        out: The checkpoint's folder; runs/NAME of the configuration by default.
        steps: Optimizer steps, instead of the configuration's.
        seed: Seed, instead of the configuration's.
        device: cpu, cuda, cuda:1 ...; a GPU where there is one, by default.
        restart: Start anew, even where the folder holds a run.
        quiet: Show no progress.
        json: Print the result as JSON on stdout.
    """
    from tweed.training.config import TrainConfig, train

    chosen = TrainConfig.read(config)
    changes = {name: value for name, value in (("steps", steps), ("seed", seed)) if value is not None}
    folder = out or Path("runs") / Path(config).stem
    result = train(
        chosen.replace(**changes) if changes else chosen,
        folder,
        resume=not restart,
        device=device,
        progress=not quiet,
    )
    last = result.losses[-100:]
    facts = {
        "folder": str(folder),
        "steps": len(result.losses),
        "loss": sum(last) / max(len(last), 1),
        "seconds": result.seconds,
        "samples_per_second": result.samples_per_second,
    }
    if json:
        print_json(facts)
        return 0
    print_table(
        ("", ""),
        [
            ("checkpoint", facts["folder"]),
            ("steps", str(facts["steps"])),
            ("loss (mean of the last 100)", f"{facts['loss']:.4f}"),
            ("time", f"{result.seconds:.0f} s, {result.samples_per_second:,.0f} samples/s"),
        ],
    )
    console(stderr=True).print(f"sample it with: tweed sample {folder} --n 64", markup=False)
    return 0
