"""Show what a model is: network, process, target, training."""

from typing import Annotated

import tyro
from rich.markup import escape

from tweed.cli._console import print_json, print_table

EXAMPLES = ("tweed info glyphs", "tweed info runs/digits --json")


def run(model: Annotated[str, tyro.conf.Positional], *, json: bool = False) -> int:
    """Show what a model is: its network and size, the process and target it was trained with, and its card's facts.

    Args:
        model: A bundled name (glyphs), a checkpoint's folder, or a Hugging Face Hub id.
        json: Print JSON on stdout.
    """
    from tweed.training import load
    from tweed.training.checkpoint import denoiser_config

    denoiser = load(model)
    facts = {
        "model": model,
        "parameters": sum(p.numel() for p in denoiser.parameters()),
        "bytes": sum(p.numel() * p.element_size() for p in denoiser.parameters()),
        **denoiser_config(denoiser),
        "meta": dict(getattr(denoiser, "meta", {}) or {}),
    }
    if json:
        print_json(facts)
        return 0
    rows = [("model", escape(model)), ("parameters", f"{facts['parameters']:,}")]
    for key, value in facts.items():
        if key not in ("model", "parameters", "bytes", "meta"):
            rows.append((key, escape(_short(value))))
    rows += [(f"meta: {key}", escape(_short(value))) for key, value in facts["meta"].items()]
    print_table(("", ""), rows)
    return 0


def _short(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={_short(item)}" for key, item in value.items())
    return str(value)
