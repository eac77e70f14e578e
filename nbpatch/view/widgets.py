"""The widget: small synced state, bulk numbers as custom messages, and what the page sends back.

What is only on screen (hover, zoom) never reaches Python; what Python must know is `selection` and the messages.
"""

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import anywidget
import traitlets

from nbpatch.view.payload import VERSION, Message

STATIC = Path(__file__).parent / "static"
BUNDLE = STATIC / "workbench.js"
LATER = ("views", "tools", "editor", "paths", "circuit")
"""The bundles that the page asks for when it needs them; they are in no widget's state."""

Handler = Callable[[Message], None]


class PatchWidget(anywidget.AnyWidget):
    """One page view of a workbench. Holds no numbers of a sweep: those travel as messages.

    Attributes:
        spec: the controls and prompts, Python → page.
        selection: the chosen cell, a label per axis, both ways; None for none.
        brushed: cells chosen together, both ways.
        status: what is running, Python → page.
        error: what is wrong with what was asked, Python → page; None for nothing.
        saved: the finished maps on screen where they are small, for a page that is opened again without a kernel.
        base64_buffers: send numbers as text, for hosts that lose binary buffers.
    """

    _esm: ClassVar[Any] = BUNDLE

    spec: Any = traitlets.Dict().tag(sync=True)
    selection: Any = traitlets.Dict(allow_none=True, default_value=None).tag(sync=True)
    brushed: Any = traitlets.List().tag(sync=True)
    status: Any = traitlets.Dict().tag(sync=True)
    error: Any = traitlets.Dict(allow_none=True, default_value=None).tag(sync=True)
    saved: Any = traitlets.List().tag(sync=True)
    schema_version = traitlets.Int(VERSION).tag(sync=True)
    base64_buffers = traitlets.Bool(False).tag(sync=False)

    def listen(self, handler: Handler) -> None:
        """Calls `handler` with every message of this version that the page sends; others are left alone."""

        def receive(widget: Any, content: Any, buffers: Any) -> None:
            if not isinstance(content, Mapping) or content.get("v") != VERSION or "type" not in content:
                return
            if content["type"] == "bundle":
                self._send_bundle(str(content.get("name")))
            else:
                handler(dict(content))

        self.on_msg(receive)

    def _send_bundle(self, name: str) -> None:
        """Sends a later bundle, with its version as the build wrote it into the first."""
        if name in LATER:
            code = (STATIC / f"{name}.js").read_bytes()
            version = hashlib.sha256(code).hexdigest()[:12]
            self.post({"v": VERSION, "type": "bundle", "name": name, "version": version}, [code])

    def post(self, message: Message, buffers: Sequence[bytes] = ()) -> None:
        """Sends a message to all pages that show the widget."""
        if self.base64_buffers and buffers:
            self.send({**message, "data64": [base64.b64encode(one).decode("ascii") for one in buffers]})
        else:
            self.send(message, buffers=list(buffers))

    def _send(self, msg: Any, buffers: Any = None) -> None:
        super()._send(msg, buffers=buffers)  # pyright: ignore[reportPrivateUsage]
        answer_on_own_shell(self.comm)


def answer_on_own_shell(comm: Any) -> None:
    """Makes ipykernel 7.4 hand the page's messages to its widget thread again, also while a cell runs.

    It hands them to the shell that last published on the comm; after anything sent from a cell that is the busy main
    shell, and a Cancel would be seen only when the cell has ended. Private, hence guarded; other kernels lack it.
    """
    if hasattr(comm, "_reply_subshell_id"):
        del comm._reply_subshell_id
