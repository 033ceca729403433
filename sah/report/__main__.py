"""`python -m sah.report FOLDER` writes a local page, `python -m sah.report wandb FOLDER` a report in W&B."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command in `sys.argv`."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["wandb"]:
        from sah.report.wandb_report import main as wandb

        raise SystemExit(wandb(arguments[1:]))
    from sah.report.local import main as local

    raise SystemExit(local(arguments))


if __name__ == "__main__":
    main()
