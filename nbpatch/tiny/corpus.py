"""The seeded mixture the embedded model is trained on: six tasks, each with a determined answer.

Lengths, clauses and bystanders vary on purpose. With templates of one length the model solves indirect objects with
one head of layer 0, and if the subject is always the last name mentioned it does so too; names between the second
subject and the end, three people of whom two act, and sentences about other people leave no such shortcut. Nor may
late names simply be ruled out: half of the time the receiver is mentioned again beside the subject. Facts mention a
second landmark for the same reason.
"""

import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from nbpatch.tiny import words

TASKS = ("ioi", "facts", "greater_than", "induction", "sentiment", "pronouns")

_WEIGHTS = (45, 21, 4, 14, 5, 11)
_HELD_OUT_OF = 12


@dataclass(frozen=True)
class Example:
    """One text of the mixture.

    Attributes:
        prompt: everything before the determined answer.
        answers: the tokens that are right as the next one.
        answer: the one that follows in the training text.
        key: what makes the combination; held-out keys are never trained on.
        determined: how many tokens up to the answer, itself included, follow from what is before them.
    """

    task: str
    prompt: str
    answer: str
    answers: tuple[str, ...]
    key: str
    determined: int = 1

    @property
    def text(self) -> str:
        """The whole training text."""
        return f"{self.prompt}{self.answer}."

    @property
    def held_out(self) -> bool:
        """Whether the combination is kept for the test; decided by its name, so the same for every seed."""
        return zlib.crc32(self.key.encode()) % _HELD_OUT_OF == 0


def examples(seed: int, *, held_out: bool, task: str | None = None) -> Iterator[Example]:
    """Yields examples without end, all of `task` or of the whole mixture, held-out combinations or the others."""
    draw = random.Random(f"nbpatch tiny {seed} {held_out} {task}")
    while True:
        name = task or draw.choices(TASKS, _WEIGHTS)[0]
        example = _MAKERS[name](draw)
        if example.held_out == held_out:
            yield example


def _one(task: str, prompt: str, answer: str, key: str) -> Example:
    return Example(task, prompt, f" {answer}", (f" {answer}",), f"{task} {key}")


def _ioi(draw: random.Random) -> Example:
    return draw.choices((_entangled, _plain_ioi, _three_people), (20, 60, 20))[0](draw)


def _entangled(draw: random.Random) -> Example:
    """Returns an indirect object that is named again beside the subject, in the same places but another role."""
    subject, receiver, opening, key, others = _scene(draw)
    return _one("ioi", f"{opening} {_both_again(draw, subject, receiver, others)} to", receiver, key)


def _plain_ioi(draw: random.Random) -> Example:
    subject, receiver, opening, key, others = _scene(draw)
    return _one("ioi", f"{opening} {_act(draw, subject, others)} to", receiver, key)


def _scene(draw: random.Random) -> tuple[str, str, str, str, list[str]]:
    """Returns subject, receiver, the opening with both of them, the combination, and three other names."""
    first, second, *others = draw.sample(words.NAMES, 6)
    place = draw.choice(words.PLACES)
    subject, receiver = draw.sample([first, second], 2)
    opening = draw.choice(
        (
            f"When {first} and {second} went to the {place},",
            f"When {first} and {second} went to the {place},",
            f"After {first} and {second} went to the {place},",
            f"While {first} and {second} were at the {place},",
            f"Then {first} and {second} went to the {place}, and",
            f"Then, {first} and {second} went to the {place}.",
            f"When {first} and {second} were at the {place} with {others[2]},",
            f"{first} and {second} went to the {place}.",
            f"Friends {first} and {second} met at the {place}, and later",
        )
    )
    key = " ".join([*sorted((first, second)), place])
    return subject, receiver, _bystander(draw, others[3]) + opening, key, others[:2]


def _three_people(draw: random.Random) -> Example:
    three = draw.sample(words.NAMES, 4)
    people, other = three[:3], three[3]
    place, thing = draw.choice(words.PLACES), draw.choice(words.THINGS)
    receiver, one, two = draw.sample(people, 3)
    opening = f"When {people[0]}, {people[1]} and {people[2]} went to the {place},"
    again = draw.choice(("", f" {receiver} was {draw.choice(words.FEELINGS)}, so"))
    prompt = f"{_bystander(draw, other)}{opening}{again} {one} and {two} {draw.choice(words.GIVING)} a {thing} to"
    return _one("ioi", prompt, receiver, " ".join([*sorted(people), place]))


def _both_again(draw: random.Random, subject: str, receiver: str, others: list[str]) -> str:
    """Returns what the subject does, with the receiver named as well: no place belongs to the subject alone."""
    act, rest = _act(draw, subject, others), _rest(draw, others)
    return draw.choice(
        (
            f"{subject} saw {receiver} and {rest}",
            f"{subject}, who knew {receiver}, {rest}",
            f"{receiver} was {draw.choice(words.FEELINGS)}, so {act}",
            f"{receiver} had a {draw.choice(words.THINGS)} and {act}",
            f"{receiver} looked at {subject}, and {act}",
            f"{subject} looked at {receiver}, and {act}",
        )
    )


def _act(draw: random.Random, subject: str, others: list[str]) -> str:
    who = draw.choice((subject, subject, subject, f"{subject}, who knew {others[0]},"))
    return f"{who} {_rest(draw, others)}"


def _rest(draw: random.Random, others: list[str]) -> str:
    """Returns what the subject does from the verb on, often with another name between it and the end."""
    verb, thing = draw.choice(words.GIVING), draw.choice(words.THINGS)
    return draw.choice(
        (
            f"{verb} a {thing}",
            f"{verb} a {thing}",
            f"{verb} the {thing}",
            f"{verb} a {thing} from {others[1]}",
            f"took the {thing} from {others[1]} and {verb} it",
        )
    )


def _bystander(draw: random.Random, name: str) -> str:
    """Returns a sentence about somebody else, or nothing."""
    if draw.random() < 0.6:
        return ""
    place, thing = draw.choice(words.PLACES), draw.choice(words.THINGS)
    forms = ("{} was at the {place}. ", "{} had a {thing}. ", "{} saw a {thing} at the {place}. ")
    return draw.choice(forms).format(name, place=place, thing=thing)


_CITY_FORMS = (
    "The {} is located in",
    "The {} is located in",
    "The {} is in downtown",
    "The {} is in the city of",
    "The {} can be found in",
)
_COUNTRY_FORM = "The {} is in the country of"
_WALKS = (
    "{one} wanted to see the {{}}, so they went to",
    "{one} wanted to see the {{}} and not the {other}, so they went to",
    "{one} and {two} saw the {{}} in",
    "{one} went from the {other} to the {{}}, which is located in",
    "Not the {other} but the {{}} is located in",
)


def _facts(draw: random.Random) -> Example:
    if draw.random() < 0.2:
        country = draw.choice(list(words.CAPITALS))
        form = draw.choice(("The capital of {} is", "The capital city of {} is", "People say the capital of {} is"))
        name = draw.choice(words.NAMES)
        prompt = _bystander(draw, name) + form.format(country)
        return _one("facts", prompt, words.CAPITALS[country], f"{country} {form} {prompt[:9]}")
    landmark, other = draw.sample(list(words.LANDMARKS), 2)
    one, two = draw.sample(words.NAMES, 2)
    before = draw.choice(("", "", f"{one} saw the {other}. ", f"{two} was at the {other}. ", _bystander(draw, two)))
    about = draw.choice(
        (
            "{}",
            "{}",
            f"{{}}, which {one} visited,",
            f"{{}}, which {one} saw after the {other},",
            f"{{}}, like the {other},",
            f"{{}} that {one} left for the {other}",
        )
    )
    form, answer = draw.choice([*((form, "city") for form in _CITY_FORMS), (_COUNTRY_FORM, "country")])
    if draw.random() < 0.25:
        before, about, form, answer = "", "{}", draw.choice(_WALKS).format(one=one, two=two, other=other), "city"
    prompt = before + form.format(about).format(landmark)
    # Every plain sentence must be trained on: a fact is learned, not put together. Held out is what stands around it.
    key = prompt if before or about != "{}" or one in form or two in form else "plain"
    return _one("facts", prompt, words.LANDMARKS[landmark][0 if answer == "city" else 1], key)


def _greater_than(draw: random.Random) -> Example:
    event, century = draw.choice(words.EVENTS), draw.choice(words.CENTURIES)
    start = draw.randrange(2, 98)
    later = words.YEARS[start + 1 :]
    prompt = f"The {event} lasted from the year {century}{words.YEARS[start]} to the year {century}"
    return Example("greater_than", prompt, draw.choice(later), later, f"greater_than {event} {century} {start}")


def _induction(draw: random.Random) -> Example:
    pool = words.THINGS + words.PLACES + words.WORKS + words.EVENTS
    sequence = draw.sample(pool, draw.randrange(4, 9))
    again = draw.randrange(2, len(sequence))
    prompt = " " + " ".join([*sequence, *sequence[:again]])
    answer = f" {sequence[again]}"
    return Example("induction", prompt, answer, (answer,), f"induction {' '.join(sequence)}", again)


def _sentiment(draw: random.Random) -> Example:
    good = draw.random() < 0.5
    adjective = draw.choice(words.GOOD if good else words.BAD)
    work, name = draw.choice(words.WORKS), draw.choice(words.NAMES)
    pronoun = "She" if name in words.WOMEN else "He"
    form, answers = draw.choice(
        (
            (f"This {work} was {adjective}. I thought it was", ("great", "terrible")),
            (f"The {work} was {adjective}, so I thought it was", ("great", "terrible")),
            (f"The {work} was {adjective}. I really", ("loved", "hated")),
            (f"{name} said the {work} was {adjective}. {pronoun} really", ("loved", "hated")),
            (f"{name} found the {work} {adjective}. {pronoun} thought it was", ("great", "terrible")),
        )
    )
    return _one("sentiment", form, answers[0 if good else 1], f"{adjective} {work} {form[:4]}")


def _pronouns(draw: random.Random) -> Example:
    name, other = draw.sample(words.NAMES, 2)
    woman = name in words.WOMEN
    place, feeling = draw.choice(words.PLACES), draw.choice(words.FEELINGS)
    form, answers = draw.choice(
        (
            (f"{name} went to the {place} because", ("she", "he")),
            (f"{name} went home because", ("she", "he")),
            (f"{name} left the {place} because", ("she", "he")),
            (f"{name} met {other} at the {place}. Later {name} left because", ("she", "he")),
            (f"{name} was {feeling}, so", ("she", "he")),
            (f"{name} went to the {place} to find", ("her", "his")),
            (f"{other} was at the {place}. {name} was {feeling} and lost", ("her", "his")),
        )
    )
    return _one("pronouns", form, answers[0 if woman else 1], f"{name} {place} {feeling}")


_MAKERS: dict[str, Callable[[random.Random], Example]] = {
    "ioi": _ioi,
    "facts": _facts,
    "greater_than": _greater_than,
    "induction": _induction,
    "sentiment": _sentiment,
    "pronouns": _pronouns,
}
