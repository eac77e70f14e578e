"""What is being typed, before anything is run: tokens, how the prompts stand to each other, predictions, ways out.

Source: the lint's words are those of `nbpatch.engine.lint`, so that a draft says what its sweep will say.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from nbpatch.errors import NbpatchError
from nbpatch.live.columns import Column, Draft, columns_of, spans_of
from nbpatch.live.controls import Ask
from nbpatch.live.editing import FIELDS, rewritten
from nbpatch.live.question import Question, Reply
from nbpatch.live.repairs import ways_out
from nbpatch.model import Model
from nbpatch.prompts import PromptPair, TokenizedPair
from nbpatch.tokens import Coder, prompt_ids
from nbpatch.view.payload import Message

_TOP = 8
"""Likeliest next tokens of each run: what the answers are chosen from."""

_MANY = 0.5
"""As in `nbpatch.engine.lint`: from this share on, prompts are rather two prompts than one with a change."""

Sides: TypeAlias = tuple[str, str]
_SIDES: Sides = ("clean", "corrupted")


def draft(question: Question) -> Iterator[Reply]:
    """Answers what a page is typing: the fields of one pair."""
    content, pairs = question.content, question.ask.pairs
    before = pairs[min(max(int(content.get("pair", 0)), 0), len(pairs) - 1)]
    values = {name: str(content.get(name, "")) for name in FIELDS}
    yield describe_draft(question.model, values, before=before, ask=question.ask), ()


def describe_draft(
    model: Model, values: Mapping[str, str], *, before: PromptPair | None = None, ask: Ask | None = None
) -> Message:
    """Returns all that is known of texts before they are run.

    Args:
        before: the pair they are an edit of: its labels and its alignment stay where they still fit.
        ask: the sweep they are for; None where there is none.
    """
    coder = Coder(model.tokenizer, model.prepends_bos)
    one = read_draft(model, coder, values, before)
    logits = _answer_logits(model, {side: one.ids[side] for side in _SIDES if side not in one.problems})
    align = one.pair.align if one.pair is not None else None
    columns = columns_of(one.ids["clean"], one.ids["corrupted"], align)
    found = ways_out(model, coder, one, columns, ask) if "lengths" in one.problems else []
    apart = len(one.ids["clean"]) != len(one.ids["corrupted"])
    return {
        **{side: _side(model, coder, one, side, logits.get(side)) for side in _SIDES},
        "has_bos": coder.has_bos(one.ids["clean"]),
        "columns": [list(column) for column in columns],
        "spans": spans_of(columns, one.ids["clean"], one.ids["corrupted"]) if apart else [],
        "errors": {field: _in_words(error) for field, error in one.problems.items()},
        **(_of_lengths(one, columns) if "lengths" in one.problems else {}),
        "answers": {
            "answer": list(one.tokenized.answer_tokens) if one.tokenized else [],
            "wrong": list(one.tokenized.wrong_tokens) if one.tokenized else [],
        },
        "warnings": list(_lint(one, logits)),
        "repairs": found,
    }


def read_draft(model: Model, coder: Coder, values: Mapping[str, str], before: PromptPair | None) -> Draft:
    """Returns texts with their tokens and their problems."""
    ids = {side: _ids(model, coder, side, values[side]) for side in _SIDES}
    try:
        pair = rewritten(before or PromptPair("", "", ""), values)
    except NbpatchError as error:
        return Draft(ids, _by_field(error), None, None)
    try:
        (tokenized,) = model.tokenize(pair)
    except NbpatchError as error:
        problems = _by_field(error)
        return Draft(ids, problems, pair, _for_answers(model, pair) if {*problems} == {"lengths"} else None)
    return Draft(ids, {}, pair, tokenized)


def _for_answers(model: Model, pair: PromptPair) -> TokenizedPair:
    """Returns a pair of unequal prompts as tokens: its answers are read as if the first positions alone were paired."""
    return model.tokenize(rewritten(pair, {"align": [[0, 0]]}))[0]


def _by_field(error: NbpatchError) -> dict[str, NbpatchError]:
    """Returns an error's problems by the field they are about, the first of each."""
    found: dict[str, NbpatchError] = {}
    for one in error.problems or (error,):
        field = "lengths" if one.where == "clean and corrupted" else one.where.split("(")[-1].rstrip("=…)")
        found.setdefault(field if field in (*FIELDS, "lengths") else "clean", one)
    return found


def _ids(model: Model, coder: Coder, side: str, text: str) -> tuple[int, ...]:
    """Returns a prompt's tokens, also of one that cannot be run; none of half a character."""
    try:
        return prompt_ids(coder, side, text, n_ctx=None)
    except NbpatchError:
        whole = text.encode("utf-8", "ignore").decode("utf-8")
        return coder.encode(whole) if whole.strip() else ()


def _in_words(error: NbpatchError) -> Message:
    what = error.what[:1].upper() + error.what[1:]
    return {"text": what, "seen": error.seen, "fix": error.fix}


def _answer_logits(model: Model, prompts: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
    """Returns the logits behind each prompt, made as the engine makes its base runs: prompts of a length together."""
    found: dict[str, torch.Tensor] = {}
    for length in dict.fromkeys(len(ids) for ids in prompts.values() if ids):
        sides = [side for side, ids in prompts.items() if len(ids) == length]
        ids = torch.tensor([list(prompts[side]) for side in sides], device=model.device)
        rows = _forward(model, ids).float().cpu()
        found.update(zip(sides, rows, strict=True))
    return found


@torch.no_grad()
def _forward(model: Model, ids: torch.Tensor) -> torch.Tensor:
    plain: Any = model.plain
    if plain is None or model.engine != "auto" or plain.training:
        return model.answer_logits(ids)
    with model.lock:
        return plain(ids, use_cache=False).logits[:, -1]


def _side(model: Model, coder: Coder, one: Draft, side: str, logits: torch.Tensor | None) -> Message:
    """Returns one prompt: its tokens, its likeliest next ones, and the probability of both answers."""
    said: Message = {"tokens": [coder.text(token) for token in one.ids[side]], "top": [], "answer": None, "wrong": None}
    if logits is None:
        return said
    said["top"] = model.top_tokens(logits[None], _TOP)[0]
    shares = logits.softmax(-1)
    if one.tokenized is not None:
        for name, ids in (("answer", one.tokenized.answer_ids), ("wrong", one.tokenized.wrong_ids)):
            said[name] = float(shares[list(ids)].sum()) if ids else None
    return said


def _lint(one: Draft, logits: Mapping[str, torch.Tensor]) -> Iterator[Message]:
    """Yields the warnings of a pair, each with the field it concerns."""
    if one.tokenized is None or one.problems:
        return
    both = one.tokenized
    for text in both.warnings:
        yield {"text": text, "about": "clean" if text.startswith("The clean") else "corrupted"}
    if len(both.differs) > max(1, _MANY * (len(both.clean_ids) - both.has_bos)):
        what = "The prompts differ in most of their tokens, so many things change at once."
        yield {"text": f"{what} Change one word in the corrupted one.", "about": "corrupted"}
    if not both.wrong_ids:
        return
    gaps = {
        side: float(rows[list(both.answer_ids)].max() - rows[list(both.wrong_ids)].max())
        for side, rows in logits.items()
    }
    if gaps["clean"] <= 0:
        what = "The clean run does not prefer the answer, so there is no behaviour to explain."
        yield {"text": f"{what} Choose a prompt the model gets right.", "about": "answer"}
    if gaps["corrupted"] > gaps["clean"]:
        what = "The corrupted prompt does better than the clean one on logit_diff."
        yield {"text": f"{what} Exchange the prompts, or answer and wrong.", "about": "wrong"}


def _of_lengths(one: Draft, columns: Sequence[Column]) -> Message:
    """Returns what to say of prompts that do not meet."""
    clean, corrupted = (len(one.ids[side]) for side in _SIDES)
    moved = next((a for a, b in columns if a is not None and b is not None and a != b), None)
    where = f"From position {moved} on, these positions hold different words, " if moved is not None else ""
    return {
        "title": "The prompts have different lengths:",
        "subtitle": f"clean has {clean} tokens, corrupted has {corrupted}.",
        "line": "A patch moves the value at one position to the same position of the other run. "
        f"{where or 'Here some have no partner, '}so nothing was run.",
    }
