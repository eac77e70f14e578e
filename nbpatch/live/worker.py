"""The kernel's one computing thread: handlers of the page enqueue, the latest wins."""

import threading
from collections.abc import Callable

NAME = "nbpatch"
"""The name of the computing thread."""


class Worker:
    """The kernel's one computing thread. Each owner has one waiting job; a newer one takes its place."""

    def __init__(self) -> None:
        self._jobs: dict[object, Callable[[], None]] = {}
        self._waiting = threading.Condition()
        self._thread: threading.Thread | None = None

    def submit(self, owner: object, job: Callable[[], None]) -> None:
        """Enqueues a job, in place of the owner's waiting one."""
        with self._waiting:
            self._jobs.pop(owner, None)
            self._jobs[owner] = job
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name=NAME, daemon=True)
                self._thread.start()
            self._waiting.notify()

    def follow(self, owner: object, job: Callable[[], None]) -> None:
        """Enqueues what comes after an owner's job, unless a newer one of the owner waits already."""
        with self._waiting:
            if owner not in self._jobs:
                self._jobs[owner] = job
                self._waiting.notify()

    def _work(self) -> None:
        while True:
            with self._waiting:
                while not self._jobs:
                    self._waiting.wait()
                job = self._jobs.pop(next(iter(self._jobs)))
            job()


KERNEL = Worker()
"""The kernel's one worker, shared by all its widgets."""

TYPING = Worker()
"""For what is typed, which must not wait for a sweep to end: two forwards, between two waves (`Model.lock`)."""
