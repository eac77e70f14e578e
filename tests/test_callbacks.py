"""What a user's callback raises: in the cell that made it run, else on the page, and never instead of the sweep."""

from typing import Any

import micro
import numpy as np
import pytest

import nbpatch as nbp
from nbpatch.plan import NOT_RUN
from nbpatch.view import payload
from nbpatch.workbench import Workbench

PAIR = nbp.PromptPair(" Mary and John gave", " John and Mary gave", " Paul", " Mary")


@pytest.fixture
def bench() -> Workbench:
    made = Workbench((micro.gpt2(), micro.tokenizer()), PAIR, "z")
    made.run()
    return made


def broken(change: Any) -> None:
    raise ValueError(f"my own {change['name']}")


def test_in_a_cell_it_is_raised_in_the_cell(bench: Workbench) -> None:
    bench.observe(broken, "selection")
    with pytest.raises(ValueError, match="my own selection"):
        bench.selection = {"layer": 1, "head": 0}
    assert bench.error is None


def test_what_the_page_set_off_is_shown_on_the_page(bench: Workbench) -> None:
    bench.observe(broken, "selection")
    bench.set_state({"selection": {"layer": 1, "head": 2}})
    assert bench.selection == {"layer": 1, "head": 2}
    assert bench.error["title"] == "A callback on selection raised ValueError: my own selection"
    assert bench.error["lines"][0].endswith("broken")
    assert 'raise ValueError(f"my own' in bench.error["traceback"]


def test_the_sweep_that_called_it_is_finished_all_the_same(bench: Workbench) -> None:
    bench.observe(broken, "direction")
    bench._receive({"v": 1, "type": "set", "direction": "noising"})
    assert bench._done.wait(20)
    assert bench.result.provenance["direction"] == "noising"
    assert not (bench.result.data["state"] == NOT_RUN).any()
    assert bench.status["state"] == "done"
    assert bench.error["title"] == "A callback on direction raised ValueError: my own direction"
    bench.unobserve(broken, "direction")
    bench._receive({"v": 1, "type": "set", "direction": "both"})
    assert bench._done.wait(20)
    assert bench.error is None


def test_a_callback_on_errors_that_raises_does_not_go_round_in_circles(bench: Workbench) -> None:
    bench.observe(broken, "error")
    bench.observe(broken, "result")
    bench._receive({"v": 1, "type": "set", "direction": "noising"})
    assert bench._done.wait(20)
    assert bench.result.provenance["direction"] == "noising"


def test_the_saved_state_holds_the_finished_maps_on_screen(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = bench.saved
    values = np.frombuffer(np.array(payload.maps_of(bench.result)[0].effect).tobytes(), np.float32)
    assert one["effect64"] == payload.to_base64(values)
    assert bench.get_state()["saved"] == bench.saved
    bench._receive({"v": 1, "type": "set", "component": "resid_pre"})
    assert bench._done.wait(20)
    assert [one["key"]["component"] for one in bench.saved] == ["resid_pre"]
    monkeypatch.setattr(payload, "MOST_SAVED", 10)
    assert payload.small_maps(bench.result, "logit_diff") == []


def test_what_is_not_finished_is_not_saved() -> None:
    assert Workbench((micro.gpt2(), micro.tokenizer()), PAIR, "z").saved == []
