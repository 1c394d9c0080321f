"""Generates the files below ``share``: man pages and completion scripts.

``python -m inferd.cli.share DIRECTORY`` writes the man pages to ``man/man1``. The same command writes one
completion script for each of bash, zsh and fish, to the directory that the shell searches. The wheels that
``packaging/wheels.py`` builds include these files.
"""

from __future__ import annotations

import sys
from pathlib import Path

from inferd.cli import man
from inferd.cli.completion import script

SCRIPTS = {
    "bash": "bash-completion/completions/inferd",
    "zsh": "zsh/site-functions/_inferd",
    "fish": "fish/vendor_completions.d/inferd.fish",
}


def files() -> dict[str, str]:
    """Returns the files below ``share``: a mapping from each file's path to its text."""
    pages = {f"man/man1/{name}": page for name, page in man.pages().items()}
    return pages | {path: script(shell) + "\n" for shell, path in SCRIPTS.items()}


def main(arguments: list[str]) -> int:
    """Writes the files below the given directory. Returns the exit code."""
    (directory,) = arguments
    for path, text in files().items():
        file = Path(directory) / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
