"""The command `tweed`.

One file a command: every module here whose name has no leading underscore is one, `cli/train.py` is `tweed train`. It
is imported when the command is used, not before, and has

    def run(<typed options>) -> int | None

whose signature gives the options (through tyro), whose docstring gives the help (`Args:`), and which returns the exit
code (None is 0). The first line of the module's docstring is its line in `tweed --help`; an optional tuple of lines
`EXAMPLES` ends `tweed <command> --help`.

Exit codes: 0 fine, 1 a relation does not hold, 2 bad input, 70 a fault of tweed's own, 130 interrupted.
"""

from tweed.cli._dispatch import main

__all__ = ["main"]
