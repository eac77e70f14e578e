"""The widget: what is synced, what messages are taken, how numbers travel, the workaround for ipykernel 7.4."""

import base64
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from nbpatch.view import widgets
from nbpatch.view.payload import VERSION
from nbpatch.view.widgets import BUNDLE, PatchWidget

LIMIT = 80_000


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], Any]]:
    got: list[tuple[dict[str, Any], Any]] = []
    monkeypatch.setattr(PatchWidget, "send", lambda self, message, buffers=None: got.append((message, buffers)))
    return got


def test_the_bundle_is_built_and_within_its_budget() -> None:
    size = BUNDLE.stat().st_size
    assert 10_000 < size <= LIMIT, f"{size} bytes"


def test_small_state_is_synced_and_numbers_are_not() -> None:
    synced = set(PatchWidget().get_state()) & {
        "spec",
        "selection",
        "status",
        "error",
        "saved",
        "schema_version",
        "base64_buffers",
    }
    assert synced == {"spec", "selection", "status", "error", "saved", "schema_version"}
    assert PatchWidget().schema_version == VERSION


def test_messages_of_another_version_or_shape_are_left_alone() -> None:
    widget, got = PatchWidget(), []
    widget.listen(got.append)
    for content in (
        {"v": VERSION, "type": "run"},
        {"v": VERSION + 1, "type": "run"},
        {"type": "run"},
        "run",
        None,
        {"v": VERSION},
    ):
        for callback in widget._msg_callbacks.callbacks:
            callback(widget, content, [])
    assert got == [{"v": VERSION, "type": "run"}]


def test_numbers_travel_as_buffers(sent: list[tuple[dict[str, Any], Any]]) -> None:
    PatchWidget().post({"type": "map"}, [b"abc", b"d"])
    assert sent == [({"type": "map"}, [b"abc", b"d"])]


def test_numbers_travel_as_text_where_buffers_are_lost(sent: list[tuple[dict[str, Any], Any]]) -> None:
    PatchWidget(base64_buffers=True).post({"type": "map"}, [b"abc"])
    assert sent == [({"type": "map", "data64": [base64.b64encode(b"abc").decode()]}, None)]


@pytest.mark.parametrize(
    "act", [lambda widget: widget.post({"type": "map"}), lambda widget: setattr(widget, "status", {"a": 1})]
)
def test_after_anything_sent_the_comm_forgets_the_shell_it_came_from(act: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    comm = SimpleNamespace(comm_id="1", kernel=None)
    comm.send = lambda **message: setattr(comm, "_reply_subshell_id", None)
    widget = PatchWidget()
    monkeypatch.setattr(PatchWidget, "comm", comm)
    act(widget)
    assert not hasattr(comm, "_reply_subshell_id")


def test_other_kernels_have_nothing_to_forget() -> None:
    widgets.answer_on_own_shell(None)
    widgets.answer_on_own_shell(SimpleNamespace())


def test_dropping_the_name_restores_the_route_of_the_page() -> None:
    """ipykernel 7.4 falls back to the shell that the page's message names only where the attribute is absent."""
    comm = pytest.importorskip("ipykernel.comm.comm")
    if not hasattr(comm.BaseComm, "_reply_subshell_for"):
        pytest.skip("this ipykernel does not reroute messages")
    one = comm.BaseComm.__new__(comm.BaseComm)
    one._reply_subshell_lock, one._reply_subshell_ids = threading.Lock(), {}
    one._reply_subshell_id = None
    assert one._reply_subshell_for({}, "own") is None
    widgets.answer_on_own_shell(one)
    assert one._reply_subshell_for({}, "own") == "own"
