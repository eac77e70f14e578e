"""The attention of a model's heads on a pair of prompts, as a widget of its own."""

from typing import Any

import traitlets

from nbpatch.errors import PlanError, SiteError, suggest
from nbpatch.live.worker import KERNEL
from nbpatch.methods.companions import attention
from nbpatch.model import Model, load
from nbpatch.prompts import PromptPair
from nbpatch.result import Result
from nbpatch.view import payload
from nbpatch.view.payload import Message
from nbpatch.view.widgets import PatchWidget

MODES = ("clean", "corrupted", "difference")


class AttentionView(PatchWidget):
    """What each head attends to in the clean and the corrupted run of a pair, as a widget of its own.

    Args:
        model: what `nbpatch.load` takes or returned.
        pair: the prompts.
        layer: the layer shown first.
        head: the head shown first.

    Attributes:
        layer, head: the head shown; can be set, observed and linked.
        mode: "clean", "corrupted" or "difference" (clean − corrupted).
        pair: can be set.

    Raises:
        PromptError: a pair that cannot be used.
        PlanError: prompts of different lengths.
        SiteError: a layer or head that the model does not have, or a model that does not show its patterns.
    """

    layer: Any = traitlets.Int(0).tag(sync=True)
    head: Any = traitlets.Int(0).tag(sync=True)
    mode: Any = traitlets.Unicode("clean").tag(sync=True)
    pair: Any = traitlets.Any()

    def __init__(self, model: Any, pair: PromptPair, layer: int = 0, head: int = 0) -> None:
        self.model: Model = load(model)
        self._patterns: Result | None = None
        super().__init__()
        self.listen(self._receive)
        self.pair = pair
        self.layer, self.head = layer, head

    @traitlets.validate("layer", "head")
    def _check_place(self, proposal: Any) -> int:
        name, value = proposal["trait"].name, proposal["value"]
        count = self.model.shape.n_layers if name == "layer" else self.model.shape.n_heads
        if not 0 <= value < count:
            raise SiteError(f"no {name} {value}.", where="AttentionView", fix=f"{name}s 0–{count - 1}")
        return value

    @traitlets.validate("mode")
    def _check_mode(self, proposal: Any) -> str:
        if proposal["value"] not in MODES:
            what = f"no mode {proposal['value']!r}."
            raise PlanError(what, where="AttentionView", fix=suggest(proposal["value"], MODES))
        return proposal["value"]

    @traitlets.validate("pair")
    def _check_pair(self, proposal: Any) -> PromptPair:
        self._patterns = attention(self.model, proposal["value"])
        return proposal["value"]

    @traitlets.observe("pair")
    def _on_pair(self, change: Any) -> None:
        if self._patterns is None:
            raise LookupError("a pair is checked before it is kept")
        self.spec = payload.blank("attention", self._patterns.provenance)

    def _receive(self, message: Message) -> None:
        """Takes a message of the page. May be called on any thread; only enqueues."""
        if message["type"] == "attention":
            layer = int(message["layer"])
            KERNEL.submit((self, layer), lambda: self._send_layer(layer))

    def _send_layer(self, layer: int) -> None:
        if self._patterns is not None and 0 <= layer < self.model.shape.n_layers:
            head, values = payload.attention_message(self._patterns, layer)
            self.post(head, [values.tobytes()])
