"""Records docs/session.svg: a real terminal session, played back in real time.

``python packaging/session.py`` runs the commands below, one after another, with the ``inferd`` on PATH. Each
piece of output appears in the picture at its original time. Without animations the whole session is visible.
"""

from __future__ import annotations

import html
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMANDS = (
    'inferd run "What is the capital of France?"',
    'echo "Rain in the north, sun in the south." | inferd run "Give the weather as JSON:" '
    "--json-schema weather.json",
    "inferd status",
)
SCHEMA = """{"type": "object", "additionalProperties": false, "required": ["north", "south"],
 "properties": {"north": {"enum": ["rain", "sun", "snow"]}, "south": {"enum": ["rain", "sun", "snow"]}}}"""
COLUMNS, LINE, CHAR, PAD = 96, 19, 7.83, 18
TYPING_SECS, PAUSE_SECS = 0.025, 0.8
OUT = Path(__file__).parents[1] / "docs" / "session.svg"


class Screen:
    """Pieces of text, each with its position, its class and the second at which it appears."""

    def __init__(self) -> None:
        self.pieces: list[tuple[float, int, int, str, str]] = []
        self.row = self.column = 0

    def write(self, at: float, text: str, kind: str) -> None:
        for i, line in enumerate(text.split("\n")):
            if i:
                self.row, self.column = self.row + 1, 0
            while line:
                piece, line = line[: COLUMNS - self.column], line[COLUMNS - self.column :]
                if piece:
                    self.pieces.append((at, self.row, self.column, kind, piece))
                self.column += len(piece)
                if line:
                    self.row, self.column = self.row + 1, 0


def record(screen: Screen, folder: Path) -> float:
    """Runs the commands in ``folder``; returns the length of the session in seconds."""
    now = 0.3
    for command in COMMANDS:
        screen.write(now, "$ ", "prompt")
        for word in command.split(" "):
            screen.write(now, f"{word} ", "typed")
            now += TYPING_SECS * len(word)
        screen.write(now, "\n", "typed")
        begun = time.monotonic()
        with subprocess.Popen(
            command, shell=True, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            assert process.stdout
            while chunk := process.stdout.read1(4096):
                screen.write(now + time.monotonic() - begun, chunk.decode(), "out")
        assert process.returncode == 0, command
        now += time.monotonic() - begun + PAUSE_SECS
        if screen.column:
            screen.write(now, "\n", "out")
    return now


def picture(screen: Screen, seconds: float) -> str:
    width, height = COLUMNS * CHAR + 2 * PAD, (screen.row + 1) * LINE + 2 * PAD
    texts = "\n".join(
        f'<text class="{kind}" x="{PAD + column * CHAR:.1f}" y="{PAD + (row + 1) * LINE - 5}" '
        f'style="animation-delay:{at:.2f}s">{html.escape(piece.rstrip(), quote=False)}</text>'
        for at, row, column, kind, piece in screen.pieces
        if piece.strip()
    )
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" \
width="{width:.0f}" role="img" aria-label="A recorded session of {seconds:.0f} seconds">
<style>
rect {{ fill: #16181d }}
text {{ font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; \
fill: #d7dae0; white-space: pre; animation: show 0.01s backwards }}
.prompt {{ fill: #7fb0ff }}
.typed {{ fill: #ffffff }}
@keyframes show {{ from {{ opacity: 0 }} }}
</style>
<rect width="100%" height="100%" rx="8"/>
{texts}
</svg>
"""


def main() -> None:
    screen = Screen()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "weather.json").write_text(SCHEMA)
        seconds = record(screen, Path(folder))
    OUT.write_text(picture(screen, seconds))
    print(f"{OUT}: {seconds:.1f} s, {len(screen.pieces)} pieces", file=sys.stderr)


if __name__ == "__main__":
    main()
