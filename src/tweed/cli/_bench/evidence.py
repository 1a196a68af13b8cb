"""The evidence behind `tweed.solvers.recommend`: runs of `tweed bench solvers`, entered into one file."""

import math
from pathlib import Path
from typing import Any

from tweed.cli._bench.solvers import EXACT
from tweed.recipes.report import plain
from tweed.solvers.grid_search import INITIAL

_KEPT = 6


def record(path: Path, result: dict[str, Any]) -> None:
    """Enter a run into the file; an earlier one of the same case is replaced."""
    from tweed.training.files import read_json, write_json

    held = read_json(path) if path.is_file() else {"cases": []}
    case = case_from(result)
    same = ("name", "process", "guided")
    held["cases"] = [each for each in held["cases"] if any(each[key] != case[key] for key in same)] + [case]
    held["cases"].sort(key=lambda each: [str(each[key]) for key in same])
    write_json(path, plain(held))


def case_from(result: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a run: for each budget the leading solvers on fixed grids, over DPM-Solver++ 2M."""
    name = result["process"].split("(")[0]
    family = "EDM" if name in ("EDM", "VE") else "RectifiedFlow" if name == "RectifiedFlow" else "VP"
    budgets = []
    for line in result["summary"]:
        rows = [
            row
            for row in result["rows"]
            if row["budget"] == line["budget"]
            and row["library"] == "tweed"
            and row["grid"] in INITIAL
            and math.isfinite(row["rmse"])
        ]
        best: dict[str, dict[str, Any]] = {}
        for row in sorted(rows, key=lambda row: row["rmse"]):
            best.setdefault(row["method"], row)
        second = best["DPMSolver"]["rmse"] if "DPMSolver" in best else math.nan
        kept = [
            {"solver": row["method"], "grid": row["grid"], "error": row["rmse"], "gain": row["rmse"] / second}
            for row in list(best.values())[:_KEPT]
        ]
        budgets.append({"budget": line["budget"], "rows": kept})
    return {
        "name": result["model"],
        "process": result["process"],
        "family": family,
        "field": "exact score" if result["model"] == EXACT else "network",
        "guided": result["scale"] != 1.0,
        "scale": result["scale"],
        "starts": result["starts"],
        "seed": result["seed"],
        "budgets": budgets,
    }
