"""Ask about a document of any length, or about a picture.

    python examples/document.py README.md "What is this?"
    python examples/document.py photo.png "What is this?"

Files are sent as raw bytes after the request, so the limit of a request line does not apply. A picture needs
a model that accepts images.
"""

import sys
from pathlib import Path

from inferd import Attachment, Client, RequestFailed, Text

TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}


def attach(path: Path) -> Attachment:
    mime = TYPES.get(path.suffix.lower())
    return Attachment("text" if mime is None else "image", path.read_bytes(), mime=mime)


def main() -> int:
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} FILE QUESTION")
    path, question = Path(sys.argv[1]), sys.argv[2]
    turn = {"role": "user", "content": [attach(path), question]}
    try:
        with Client() as client, client.messages([turn], max_tokens=200) as answer:
            for event in answer:
                if isinstance(event, Text):
                    print(event.text, end="", flush=True)
    except RequestFailed as error:
        print(f"{error.wire_code}: {error}", file=sys.stderr)
        return error.exit_code
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
