"""What a user's callback raises reaches whoever made it run: a cell's code in the cell, the page on the page."""

import threading
from typing import Any

from nbpatch.live.controls import describe_error
from nbpatch.live.worker import NAME
from nbpatch.view.payload import Message
from nbpatch.view.widgets import PatchWidget


class Heard(PatchWidget):
    """A widget whose page shows what callbacks raise that the page, or a run it asked for, has called."""

    _raised: Message | None = None

    def notify_change(self, change: Any) -> None:
        """Calls the callbacks of a trait."""
        try:
            super().notify_change(change)
        except Exception as error:
            name = change["name"]
            by_page = name in self._property_lock or threading.current_thread().name == NAME
            if not by_page:
                raise
            title = f"A callback on {name} raised {type(error).__name__}: {error}"
            self._raised = {**describe_error(error), "title": title, "callback": True}
            # An error in a callback on `error` itself would call it again.
            if name != "error":
                self.error = None
                self.error = self._raised
