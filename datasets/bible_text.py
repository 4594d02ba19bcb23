"""The text that travels with the package: the King James Bible, 4.2 million characters, public domain.

Source, licence and conversion are in `_data/KING_JAMES_NOTE.md`.
"""

from __future__ import annotations

import lzma
from pathlib import Path

_FILE = Path(__file__).parent / "_data" / "king_james.txt.xz"


def king_james() -> str:
    """The whole text: 66 books, one verse a line after its number, chapters headed as `Genesis 1`; all ASCII."""
    if not _FILE.is_file():
        raise FileNotFoundError(
            f"{_FILE} is missing from this installation. Reinstall spikeloom, or make the file as "
            "KING_JAMES_NOTE.md beside it says."
        )
    return lzma.decompress(_FILE.read_bytes()).decode("utf-8")
