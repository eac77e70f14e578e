"""nbpatch's sweeps beside transformer_lens.patching's: same process, same model, taken in turns, medians.

    make bench            prints one line a sweep: both times, their ratio, the largest difference of the values

The model has GPT-2 small's shape with random weights (`--layers` makes it shorter): the time of a forward does not
depend on what the weights say. One thread, as two would measure the machine's other work. TransformerLens's progress
bars are hidden.
"""

import argparse
import contextlib
import io
import statistics
import time

import torch
from transformer_lens import patching

import nbpatch
from nbpatch import PromptPair

SWEEPS = (
    ("resid_pre", "layer pos", "get_act_patch_resid_pre"),
    ("attn_out", "layer pos", "get_act_patch_attn_out"),
    ("z", "layer head", "get_act_patch_attn_head_out_all_pos"),
    ("pattern", "layer head", "get_act_patch_attn_head_pattern_all_pos"),
)

PAIR = PromptPair(
    clean="When Mary and John went to the store, John gave a drink to",
    corrupted="When Mary and John went to the store, Mary gave a drink to",
    answer=" Mary",
    wrong=" John",
)


def like_gpt2(layers):
    """A GPT-2 of the given depth with random weights, on the embedded model's tokenizer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    tokenizer = nbpatch.load("tiny").tokenizer
    return nbpatch.load((GPT2LMHeadModel(GPT2Config(n_layer=layers, bos_token_id=0, eos_token_id=0)).eval(), tokenizer))


def theirs(model, function):
    """Returns the sweep as TransformerLens runs it, its clean cache included, as nbpatch's base runs are."""
    (one,) = model.tokenize(PAIR)
    answer, wrong = one.answer_ids[0], one.wrong_ids[0]

    def difference(logits):
        return logits[0, -1, answer] - logits[0, -1, wrong]

    def run():
        with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
            _, cache = model.bridge.run_with_cache(torch.tensor([one.clean_ids]))
            return getattr(patching, function)(
                model.bridge, torch.tensor([one.corrupted_ids]), cache, difference
            ).numpy()

    return run


def ours(model, component, over):
    """Returns the same sweep as nbpatch runs it."""

    def run():
        result = nbpatch.patch(model, PAIR, component, over, on_progress=lambda progress: None)
        return result.data["logit_diff"].isel(pair=0).to_numpy()

    return run


def timed(function):
    started = time.perf_counter()
    values = function()
    return time.perf_counter() - started, values


def compare(model, repeats):
    """Prints one line for each sweep."""
    print(f"{'sweep':24} {'nbpatch':>9} {'TransformerLens':>16} {'faster':>7} {'max |difference|':>17}")
    for component, over, function in SWEEPS:
        contestants = {"ours": ours(model, component, over), "theirs": theirs(model, function)}
        values = {name: run() for name, run in contestants.items()}
        times = {name: [] for name in contestants}
        for _ in range(repeats):
            for name, run in contestants.items():
                times[name].append(timed(run)[0])
        mine, other = (statistics.median(times[name]) for name in ("ours", "theirs"))
        apart = float(abs(values["ours"] - values["theirs"]).max())
        print(
            f"{component + ' over ' + over:24} {mine:8.2f}s {other:15.2f}s {other / mine:6.1f}x {apart:17.1e}",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    compare(like_gpt2(options.layers), options.repeats)


if __name__ == "__main__":
    main()
