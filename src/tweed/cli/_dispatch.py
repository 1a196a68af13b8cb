"""From the words of a command line to the command that they name, and from what it raises to an exit code."""

import ast
import importlib
import os
import pkgutil
import sys
import traceback
from collections.abc import Sequence
from importlib import metadata, util
from pathlib import Path

import tweed.cli as _package
from tweed.errors import TweedError, choose

BAD_INPUT, FAULT, INTERRUPTED, BROKEN_PIPE = 2, 70, 130, 141

_HEAD = """\
usage: tweed [--version] [--help] COMMAND [options]

Denoising generative models in one grammar: process, target, denoiser, solver.

commands:"""

_TAIL = """
  tweed COMMAND --help     the options of a command, with examples
  --traceback              with any command: show where an error comes from
  --version                print the version

exit codes: 0 fine, 1 a relation does not hold, 2 bad input, 70 a fault of tweed's own, 130 interrupted"""


def commands() -> list[str]:
    """The names of all commands, in alphabetical order; none is imported."""
    return sorted(module.name for module in pkgutil.iter_modules(_package.__path__) if module.name[0] != "_")


def summary(command: str) -> str:
    """The first line of a command's docstring, read from its file without importing it."""
    spec = util.find_spec(f"tweed.cli.{command}")
    if spec is None or spec.origin is None:
        return ""
    return (ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or "").partition("\n")[0]


def overview() -> str:
    """The text of `tweed --help`."""
    return "\n".join([_HEAD, *(f"  {name:<12} {summary(name)}" for name in commands()), _TAIL])


def main(argv: Sequence[str] | None = None) -> int:
    """Run `tweed` with the words `argv` (those of the process by default), and return the exit code.

    Nothing is raised: bad input ends in a message on stderr and 2, an interrupt in 130, a fault of tweed's own in its
    traceback and 70. `--traceback` shows the traceback of bad input too.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    show_trace = "--traceback" in words
    try:
        code = _dispatch([word for word in words if word != "--traceback"])
        sys.stdout.flush()  # here, so that a closed pipe is noticed below and not at interpreter exit
        return code
    except SystemExit as exit:  # tyro, after --help (0) or an option that it refuses (2)
        return exit.code if isinstance(exit.code, int) else BAD_INPUT if exit.code else 0
    except KeyboardInterrupt:
        print("tweed: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `tweed systems | head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)
        return BROKEN_PIPE
    except (TweedError, OSError) as error:
        if show_trace:
            traceback.print_exc()
        print(f"tweed: error: {error}", file=sys.stderr)
        return BAD_INPUT
    except Exception:
        traceback.print_exc()
        print("tweed: this is a fault of tweed's own, not of the input; please report it", file=sys.stderr)
        return FAULT


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        if len(words) < 2 or words[0] != "help":
            print(overview())
            return 0
        words = [words[1], "--help"]
    if words[0] == "--version":
        print(f"tweed {metadata.version('tweed')}")
        return 0
    name, rest = words[0], words[1:]
    choose("command", name, commands())
    return _run(name, rest)


def _run(name: str, words: list[str]) -> int:
    import tyro

    module = importlib.import_module(f"tweed.cli.{name}")
    text = (module.run.__doc__ or module.__doc__ or "").partition("Args:")[0]
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]
    examples = getattr(module, "EXAMPLES", ())
    if examples:
        paragraphs.append("\n".join(["examples:", *(f"  {line}" for line in examples)]))
    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)
    code = tyro.cli(module.run, prog=f"tweed {name}", description="\n\n".join(paragraphs), args=words, config=config)
    return 0 if code is None else int(code)
