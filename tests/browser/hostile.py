"""A small random model whose tokens are markup, scripts and marks that turn the writing round."""

import re

import nbpatch as nbp

SCRIPT = "</script><script>window.hurt = 1</script>"
IMAGE = "<img src=x onerror='window.hurt=1'>"
TURNED = "\u202ereversed"
WORDS = (" Mary", " John", " and", " gave", SCRIPT, IMAGE, "<!--", "&lt;", TURNED, "{{7*7}}", "$x$", "'\"`")
CLEAN = f" Mary{SCRIPT}{IMAGE}<!--&lt;{TURNED}{{{{7*7}}}}$x$'\"` gave"
CORRUPTED = CLEAN.replace(" Mary", " John")


def model():
    """Returns the loaded model. Its weights come from a fixed seed."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = ("<bos>", "<unk>", *WORDS)
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(map(re.escape, WORDS))), behavior="isolated")
    core.decoder = decoders.Fuse()
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", unk_token="<unk>")
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=2, n_head=2, n_embd=16, n_positions=32, vocab_size=len(words), initializer_range=0.3,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return nbp.load((GPT2LMHeadModel(config).eval(), tokenizer))


def pair():
    """Returns prompts that hold every bad token, with bad tokens as answers."""
    return nbp.PromptPair(CLEAN, CORRUPTED, IMAGE, SCRIPT)
