"""`python -m tweed` is the command `tweed`."""

from tweed.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
