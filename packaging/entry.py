"""The one program that is built: window, worker and command line, told apart by the first word."""

import os
import sys


def main() -> int:
    """``--worker``: the process that does the work. ``--member``: one of several that teach together. ``cli …``: the command line.
    Otherwise: the window."""
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    if word == "--worker":
        sys.argv.pop(1)
        from engine.worker.__main__ import main as work

        return work() or 0
    if word == "--member":
        from engine.train.launch import main as join

        return join([])
    if word == "cli":
        sys.argv.pop(1)
        os.environ.setdefault("ADAPTER_STUDIO_COMMAND", "adapter-studio cli")
        from engine.cli import main as command

        return command() or 0
    from studio.__main__ import main as window

    return window() or 0


if __name__ == "__main__":
    sys.exit(main())
