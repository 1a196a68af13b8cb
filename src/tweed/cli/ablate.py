"""Train variants of a configuration, and compare their held-out losses."""

from pathlib import Path
from typing import Annotated

import tyro
from rich.markup import escape

from tweed.cli._console import console, print_json, print_table, progress_bar

EXAMPLES = (
    "tweed ablate digits --vary target=noise,velocity,data,k --seeds 3 --steps 500",
    "tweed ablate mine.toml --vary target=noise,v --vary network.routing=1.0,0.8 --out runs/ablate-mine",
    "tweed ablate digits --vary optimisation.lr=1e-3,3e-3 --vary 'network.multipliers=[1,2],[1,2,2]'",
    "tweed ablate digits --vary 'optimisation.optimizer=AdamW,{name=\"DualAdam\",switch_rate=1e-2}'",
    "tweed ablate glyphs --vary 'process=VP,RectifiedFlow,{name=\"VP\",beta_max=30}' --steps 2000 --json",
)


def run(
    config: Annotated[str, tyro.conf.Positional],
    *,
    vary: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="PATH=VALUE,VALUE")] = (),
    seeds: int = 3,
    steps: int | None = None,
    out: Path | None = None,
    held_out: float = 0.1,
    device: str | None = None,
    quiet: bool = False,
    json: bool = False,
) -> int:
    """Train all combinations of the values given with --vary, each with the same seeds, steps and data, and compare them.

    A path is that of a value in the configuration, such as optimisation.lr, network.depth, target, objective.weighting or
    objective.times.low; values are as in TOML, names without quotes. Targets have short names: noise, velocity, v, data, edm,
    and k, which is learned with the network.

    All are judged by one loss, whatever they were trained with: the squared error of eps - x_0, the velocity of the straight
    path from data to noise, on data that no run has trained on, at the same noise levels and with the same noise. Each
    denoiser sees its own process at these levels, and its answer is read as data and noise, so neither the target nor the
    process nor the weighting changes what the best possible loss is. (The training loss of each variant is that of its own
    target, unless objective.target says otherwise.) The test split is held out where the data have one, elsewhere a share.

    Writes OUT/table.md, table.json and curves.png: mean and 95 % confidence interval over the seeds, differences from the first
    variant paired by seed, time a step, parameters. The same command again goes on where it was interrupted, at the last
    checkpoint of logging.save_every steps; finished runs are kept, so variants and seeds can be added later.

    Args:
        config: A TOML file, or a configuration that tweed brings: digits, glyphs, speech or speech-direct.
        vary: A path and its values; give it again for a grid. The first values are what the others are compared with.
        seeds: How many seeds: the configuration's, and the ones after it.
        steps: Optimizer steps of every run, instead of the configuration's.
        out: The folder; runs/ablate-NAME of the configuration by default.
        held_out: The share of the data to hold out, where they have no test split.
        device: cpu, cuda, cuda:1 ...; a GPU where there is one, by default.
        quiet: Show no progress.
        json: Print the table as JSON on stdout.
    """
    from tweed.training.ablation import ablate
    from tweed.training.ablation_table import COLUMNS

    folder = out or Path("runs") / f"ablate-{Path(config).stem}"
    options = {"steps": steps, "seeds": seeds, "share": held_out, "device": device}
    if quiet:
        table = ablate(config, vary, folder, **options)
    else:
        with progress_bar("ablate") as progress:
            table = ablate(config, vary, folder, tell=progress, **options)
    if json:
        print_json(table.to_dict())
        return 0
    print_table(COLUMNS, [tuple(map(escape, cells)) for cells in table.cells()], right=COLUMNS[1:])
    for note in table.notes:
        print(f"  {note}")
    console(stderr=True).print(f"written to {folder}: table.md, table.json, curves.png", markup=False)
    return 0
