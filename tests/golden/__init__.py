"""Whole texts that users read, compared letter by letter; `NBPATCH_GOLDEN=write pytest …` writes them anew."""

import os
from pathlib import Path

FOLDER = Path(__file__).parent


def check(name: str, text: str) -> None:
    """Compares `text` with the file of that name."""
    file = FOLDER / f"{name}.txt"
    if os.environ.get("NBPATCH_GOLDEN") == "write":
        file.write_text(text + "\n", encoding="utf-8")
    assert text + "\n" == file.read_text(encoding="utf-8")
