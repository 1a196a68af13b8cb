"""Pages that are made from the source when the site is built, so that none can fall behind it.

The reference has one page a room, with every public module in it; the systems come from the catalogue; the commands
from their files. All is read from the text of the source: nothing of the library is imported.
"""

import ast
import json
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "tweed"
FLOORS = (
    ("core",),
    ("solvers", "nets", "data", "metrics"),
    ("guidance", "starts", "training"),
    ("inverse", "restoration", "editing", "distill", "align", "compress", "tokens", "policy"),
    ("science", "graphs", "protect", "analysis", "interop"),
    ("recipes",),
    ("studio",),
)
FRAMEWORK = {"__init__", "report", "registry", "systems"}


def rooms() -> list[str]:
    """The rooms that hold at least one public module, from the ground up."""
    names = [room for floor in FLOORS for room in floor if (SOURCE / room / "__init__.py").exists()]
    return [room for room in names if modules(SOURCE / room)]


def modules(room: Path) -> list[Path]:
    """The public modules of a room, in the order of their paths; `__init__` files define nothing themselves."""
    parts = {path: path.relative_to(room).with_suffix("").parts for path in room.rglob("*.py")}
    return sorted(path for path, names in parts.items() if not any(name.startswith("_") for name in names))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    for entry in config.nav or []:
        if "Reference" in entry:
            entry["Reference"] = ["reference/errors.md", *(f"reference/{room}.md" for room in rooms())]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    pages = {f"reference/{room}.md": reference(room) for room in rooms()}
    pages["reference/errors.md"] = "# errors\n\n::: tweed.errors\n"
    pages["systems.md"] = systems()
    pages["commands.md"] = commands()
    for name in ("CONTRIBUTING", "CHANGELOG"):
        pages[f"{name.lower()}.md"] = (ROOT / f"{name}.md").read_text(encoding="utf-8").replace("](docs/", "](")
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def reference(room: str) -> str:
    """The page of a room: what it is for, then every public module."""
    first = SOURCE / room / "__init__.py"
    about = ast.get_docstring(ast.parse(first.read_text(encoding="utf-8"))) or ""
    names = [".".join(("tweed", *path.relative_to(SOURCE).with_suffix("").parts)) for path in modules(SOURCE / room)]
    return "\n\n".join([f"# {room}", about, *(f"::: {name}" for name in names)]) + "\n"


def systems() -> str:
    """The index of the published systems, one table a family."""
    entries = json.loads((SOURCE / "recipes" / "systems.json").read_text(encoding="utf-8"))
    built = {
        path.stem.replace("_", "-") for path in (SOURCE / "recipes").glob("[!_]*.py") if path.stem not in FRAMEWORK
    }
    ready = sum(entry["slug"] in built for entry in entries)
    lines = [
        "# Systems",
        "",
        f"{len(entries)} published systems, {ready} of them with a recipe that measures their claim here:",
        "`tweed reproduce SYSTEM`. `tweed systems` prints this list.",
    ]
    for family in sorted({entry["family"] for entry in entries}):
        lines += ["", f"## {family}", "", "| system | what it does | paper | status |", "|---|---|---|---|"]
        for entry in entries:
            if entry["family"] == family:
                status = "**ready**" if entry["slug"] in built else "planned"
                paper = f"{entry['title']}, {entry['year']}, {_links(entry['reference'])}"
                lines.append(f"| `{entry['slug']}` | {entry['summary']} | {paper} | {status} |")
    return "\n".join(lines) + "\n"


def _links(reference: str) -> str:
    if not reference.startswith("arXiv "):
        return reference
    return ", ".join(f"[{number}](https://arxiv.org/abs/{number})" for number in reference[6:].split(", "))


def commands() -> str:
    """The page of the command line: each command's help and examples."""
    lines = ["# Command line", "", "`tweed COMMAND --help` lists the options of a command.", ""]
    lines += ["Exit codes: 0 fine, 1 a relation does not hold, 2 bad input, 70 a fault of tweed's own,"]
    lines += ["130 interrupted. With `--json`, stdout carries JSON and nothing else."]
    for path in sorted((SOURCE / "cli").glob("[!_]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        body = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        text = (ast.get_docstring(body["run"]) if "run" in body else None) or ast.get_docstring(tree) or ""
        about, _, options = text.partition("Args:")
        lines += ["", f"## tweed {path.stem}", "", about.strip(), ""]
        lines += [f"- `{_option(body.get('run'), name)}`: {rest.strip()}" for name, rest in _arguments(options)]
        lines += ["", "```bash", *_examples(tree), "```"]
    return "\n".join(lines) + "\n"


def _arguments(section: str) -> list[tuple[str, str]]:
    """The (name, description) pairs of a Google-style `Args:` section, whose lines are indented by four."""
    found: list[tuple[str, str]] = []
    for line in section.partition("Returns:")[0].partition("Raises:")[0].splitlines():
        if line.startswith("    ") and not line.startswith("     ") and ":" in line:
            name, _, rest = line.strip().partition(":")
            found.append((name, rest))
        elif line.strip() and found:
            found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}")
    return found


def _option(run: ast.FunctionDef | None, name: str) -> str:
    """How a parameter is written on the command line."""
    parameters = [*run.args.posonlyargs, *run.args.args] if run else []
    for parameter in parameters:
        if parameter.arg == name and parameter.annotation and "Positional" in ast.unparse(parameter.annotation):
            return name.upper()
    return "--" + name.replace("_", "-")


def _examples(tree: ast.Module) -> list[str]:
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == "EXAMPLES" for target in targets) and node.value:
            return list(ast.literal_eval(node.value))
    return []
