"""The embedded model's tokenizer: one token a word, its leading space included; numbers in pairs of digits."""

import re
from itertools import islice
from typing import Any

from nbpatch.tiny import words
from nbpatch.tiny.corpus import TASKS, examples

BOS, UNKNOWN = "<bos>", "<unk>"

PIECE = r" ?[A-Za-z]+| ?[0-9]{2}| ?[^A-Za-z0-9\s]| ?[0-9]|\s"
"""A word, two digits, or a sign, each with the space before it."""

_SAMPLE = 6000


def vocabulary() -> list[str]:
    """Returns all tokens: what the mixture uses, and every name with and without a leading space."""
    seen: set[str] = set()
    for task in TASKS:
        for example in islice(examples(0, held_out=False, task=task), _SAMPLE):
            seen.update(re.findall(PIECE, example.text))
    seen.update(f"{space}{name}" for name in words.NAMES for space in ("", " "))
    return [BOS, UNKNOWN, *sorted(seen)]


def build(n_ctx: int) -> Any:
    """Returns the tokenizer in Hugging Face's form; it puts the beginning-of-sequence token in front by itself."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    numbers = {word: number for number, word in enumerate(vocabulary())}
    core = Tokenizer(models.WordLevel(numbers, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE), behavior="isolated")
    core.decoder = decoders.Fuse()
    core.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, numbers[BOS])])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        unk_token=UNKNOWN,
        add_bos_token=True,
        clean_up_tokenization_spaces=False,
        model_max_length=n_ctx,
    )
