"""Answers of a widget to its page: computed on the worker, bit by bit, the newest question first."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from nbpatch.live.controls import describe_error
from nbpatch.live.question import Reply
from nbpatch.live.worker import Worker
from nbpatch.view.payload import VERSION, Message


def reply(
    worker: Worker,
    owner: object,
    message: Message,
    begin: Callable[[], Iterable[Reply]],
    post: Callable[[Message, Sequence[bytes]], Any],
) -> None:
    """Enqueues the answer to a question; between two of its replies other work is done.

    Args:
        owner: what a newer question of the same kind shares with this one: it takes its place.
        message: the question as it came.
        begin: makes the replies.
        post: sends one.
    """
    told = {name: message.get(name) for name in ("kind", "key", "id")}
    head: Message = {"v": VERSION, "type": "answer", **told, "key": str(told["key"])}

    def go_on(replies: Iterator[Reply]) -> None:
        found = next(replies, None)
        if found is not None:
            post({**head, **found[0]}, found[1])
            worker.follow(owner, lambda: guarded(lambda: go_on(replies)))

    def guarded(action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - the view that asked shows it; all else stays as it is
            post({**head, "error": describe_error(error)}, [])

    worker.submit(owner, lambda: guarded(lambda: go_on(iter(begin()))))
