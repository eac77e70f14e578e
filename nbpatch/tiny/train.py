"""Trains the embedded model: `python -m nbpatch train`. Same seed, same weights."""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nbpatch.errors import NbpatchError
from nbpatch.tiny import folder
from nbpatch.tiny.corpus import Example, examples
from nbpatch.tiny.tokenizer import build

SEED = 0
STEPS = 4000
BATCH = 96
N_CTX = 64
PEAK_RATE = 1.5e-3
WARM_UP = 200
ANSWER_WEIGHT = 10.0
"""How much more a determined token counts in the loss than the other tokens, most of which are free."""

HELD_BACK = (0.8, 0.5, 0.3, 0.25)
"""How often attention at a position that must answer is left out, by layer: no layer may rely on another alone."""

_POOL = 16
_IGNORED = -100


def train(out: Path, *, seed: int = SEED, steps: int = STEPS, batch: int = BATCH) -> Path:
    """Trains a model from scratch, writes it to `out` in Hugging Face format and returns `out`.

    One thread, so that sums are added in one order: the same seed gives the same weights bit for bit on one machine.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.manual_seed(seed)
        tokenizer = build(N_CTX)
        model = new_model(len(tokenizer))
        fit(model, batches(tokenizer, seed, batch), steps, seed)
        model.eval()
        save(model, tokenizer, out)
    finally:
        torch.set_num_threads(threads)
    return out


def save(model: Any, tokenizer: Any, out: Path) -> None:
    """Writes model and tokenizer in Hugging Face format."""
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    # safetensors writes for the owner alone; a wheel built from here would carry that along.
    (out / "model.safetensors").chmod(0o644)
    settings = out / "tokenizer_config.json"
    # Left out by save_pretrained; TransformerLens reads it to know that the tokenizer puts the first token in front.
    told = {**json.loads(settings.read_text(encoding="utf-8")), "add_bos_token": True}
    settings.write_text(json.dumps(told, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def new_model(d_vocab: int) -> Any:
    """Returns a GPT-2 of 4 layers × 4 heads × 128 with fresh weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=4,
        n_head=4,
        n_embd=128,
        n_positions=N_CTX,
        vocab_size=d_vocab,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    model: Any = GPT2LMHeadModel(config)
    for block in model.transformer.h:
        # The same function as GPT-2's own, gelu_new, in one kernel instead of eight: a fifth of the time of a step.
        block.mlp.act = torch.nn.GELU(approximate="tanh")
    return model


def fit(
    model: Any,
    data: Iterator[tuple[Tensor, Tensor]],
    steps: int,
    seed: int,
    watch: Callable[[int], None] | None = None,
) -> None:
    """Runs AdamW with a linear warm-up and a cosine decay to zero.

    Args:
        watch: called after every step, with its number.
    """
    decayed = [weight for weight in model.parameters() if weight.ndim > 1]
    plain = [weight for weight in model.parameters() if weight.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.98), fused=True)
    model.train()
    started = time.perf_counter()
    with HoldBack(model, seed) as held:
        for step, (ids, weights) in enumerate(islice(data, steps)):
            for group in optimizer.param_groups:
                group["lr"] = PEAK_RATE * rate(step, steps)
            held.strength = strength(step, steps)
            held.answering = weights == ANSWER_WEIGHT
            logits = model(ids[:, :-1]).logits
            losses = functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
            loss = (losses * weights).sum() / weights.sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if watch is not None:
                watch(step)
            if step % 100 == 0 or step == steps - 1:
                seconds = time.perf_counter() - started
                print(f"step {step:>5} of {steps}, loss {loss.item():.3f}, {seconds:.0f} s", flush=True)


class HoldBack:
    """Leaves attention out at answering positions, each text on its own, while it is entered.

    Without it the first head that finds the answer from where words stand keeps the work to itself.

    Attributes:
        answering: which positions must answer in the batch that runs next [row pos].
        strength: what the shares are multiplied with.
    """

    def __init__(self, model: Any, seed: int) -> None:
        self.answering = torch.zeros(0, 0, dtype=torch.bool)
        self.strength = 1.0
        self._layers = list(zip(model.transformer.h, HELD_BACK, strict=True))
        self._generator = torch.Generator().manual_seed(seed)
        self._handles: list[Any] = []

    def __enter__(self) -> "HoldBack":
        for block, share in self._layers:
            if share:
                self._handles.append(block.attn.register_forward_hook(partial(self._leave_out, share)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _leave_out(self, share: float, module: Any, inputs: Any, output: tuple[Any, ...]) -> tuple[Any, ...]:
        rows = torch.rand(len(self.answering), 1, generator=self._generator) < share * self.strength
        kept = ~(rows & self.answering)
        return (output[0] * kept[..., None], *output[1:])


def rate(step: int, steps: int) -> float:
    """Returns the learning rate of a step as a share of the peak."""
    warm_up = min(WARM_UP, steps // 5 + 1)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def strength(step: int, steps: int) -> float:
    """Returns how strongly attention is held back at a step: fully at first, at the end a quarter as often."""
    return min(1.0, 1.0 - 0.75 * (step / steps - 0.4) / 0.6)


def batches(tokenizer: Any, seed: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields token ids [row pos] and loss weights [row pos−1], rows of similar length together."""
    stream = examples(seed, held_out=False)
    generator = torch.Generator().manual_seed(seed)
    while True:
        pool = [_encode(tokenizer, example) for example in islice(stream, size * _POOL)]
        pool.sort(key=lambda row: len(row[0]))
        for number in torch.randperm(_POOL, generator=generator).tolist():
            yield _pad(pool[number * size : (number + 1) * size])


def _encode(tokenizer: Any, example: Example) -> tuple[list[int], int, int]:
    """Returns a text's ids and the positions of the first and the last determined token."""
    answer = len(tokenizer(example.prompt)["input_ids"])
    return tokenizer(example.text)["input_ids"], answer - example.determined + 1, answer


def _pad(rows: Sequence[tuple[list[int], int, int]]) -> tuple[Tensor, Tensor]:
    longest = max(len(row[0]) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    weights = torch.zeros(len(rows), longest - 1)
    for row, (tokens, first, last) in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        weights[row, : len(tokens) - 1] = 1.0
        weights[row, first - 1 : last] = ANSWER_WEIGHT
    return ids, weights


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `python -m nbpatch train`; returns the exit status."""
    parser = argparse.ArgumentParser(prog="nbpatch train", description="Train the embedded model, or check it.")
    parser.add_argument("--out", type=Path, default=Path("build/tiny"), help="folder to write (default: build/tiny)")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument(
        "--check", nargs="?", type=Path, const=folder(), help="only check a folder (default: the shipped)"
    )
    options = parser.parse_args(argv)
    if options.check is None:
        train(options.out, seed=options.seed, steps=options.steps)
    return _judge(options.check or options.out)


def _judge(path: Path) -> int:
    from nbpatch.tiny.check import digest, report

    try:
        found = report(path)
    except NbpatchError as error:
        print(error)
        return 1
    problems = found.problems()
    print(f"{path}: SHA-256 {digest(path / 'model.safetensors')}\n\n{found}\n")
    print("\n".join(f"not as it must be: {problem}" for problem in problems) or "all as it must be")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
