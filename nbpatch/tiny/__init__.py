"""The embedded model: a small GPT-2 trained on a mixture of the field's standard prompts, shipped with the package.

`nbpatch.load("tiny")` opens it like any other folder in Hugging Face format; `python -m nbpatch train` makes it anew.
"""

from pathlib import Path


def folder() -> Path:
    """Returns the folder that holds the weights, the configuration and the tokenizer."""
    return Path(__file__).parent / "model"
