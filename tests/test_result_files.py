"""Results as files: netCDF that comes back as it was, is never half written, and opens without torch."""

import dataclasses
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from test_result import UNICODE, attention, result

from nbpatch.errors import ResultError
from nbpatch.result import Result, read


def same(one: Result, other: Result) -> bool:
    plain = json.loads(json.dumps(one.provenance)), one.warnings
    return one.data.equals(other.data) and one.baselines.equals(other.baselines) and plain == (
        other.provenance, other.warnings
    )  # fmt: skip


@pytest.mark.parametrize(
    "make",
    [
        result,
        attention,
        lambda: result(direction="both", over=("layer", "head", "pos"), clean=(1.0, 2.0), corrupted=(0.0, 0.0)),
        lambda: result(np.nan, state=4),
        lambda: result(over=("layer", "pos"), tokens=UNICODE),
    ],
)
def test_a_saved_result_comes_back(make, tmp_path):
    one = make()
    path = one.save(tmp_path / "日本 result.nc")
    other = read(path)
    assert same(one, other)
    assert other.data.attrs == one.data.attrs
    assert other.origin is None
    assert repr(other) == repr(one)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_labels_of_grouped_heads_survive(tmp_path):
    one = result()
    named = dataclasses.replace(one, data=one.data.assign_coords(head=["kv0", "kv1", "kv2"]))
    assert list(read(named.save(tmp_path / "x.nc")).to_frame()["head"][:3]) == ["kv0", "kv1", "kv2"]


def test_many_long_prompts_fit_into_a_file(tmp_path):
    one = result(clean=(4.0,) * 400, corrupted=(0.0,) * 400)
    long = [{**pair, "clean": "long prompt " * 100} for pair in one.provenance["pairs"]]
    one = dataclasses.replace(one, provenance={**one.provenance, "pairs": long})
    assert same(one, read(one.save(tmp_path / "x.nc")))


def test_what_json_cannot_hold_is_written_plainly(tmp_path):
    one = result()
    made = {**one.provenance, "extra": {"number": np.float32(0.5), "list": np.arange(3), "other": {1, 2}.__class__}}
    extra = read(dataclasses.replace(one, provenance=made).save(tmp_path / "x.nc")).provenance["extra"]
    assert extra == {"number": 0.5, "list": [0, 1, 2], "other": "<class 'set'>"}


def test_an_old_file_stays_until_a_new_one_is_complete(tmp_path, monkeypatch):
    path = result(1.0).save(tmp_path / "x.nc")

    def fail(_: xr.Dataset, unfinished: Path, *__: Any, **___: Any) -> None:
        unfinished.write_bytes(b"half")
        raise OSError("No space left on device")

    other = result(2.0)
    monkeypatch.setattr(xr.Dataset, "to_netcdf", fail)
    with pytest.raises(ResultError, match="cannot write there"):
        other.save(path)
    monkeypatch.undo()
    assert float(read(path).data["logit_diff"][0, 0, 0]) == 1.0
    assert list(tmp_path.iterdir()) == [path]


def test_whoever_reads_the_old_file_keeps_it_while_a_new_one_comes(tmp_path):
    path = result(1.0).save(tmp_path / "x.nc")
    content = path.read_bytes()
    with path.open("rb") as old:
        result(2.0).save(path)
        assert old.read() == content
    assert float(read(path).data["logit_diff"][0, 0, 0]) == 2.0


def test_two_threads_may_save_to_one_name(tmp_path):
    path = tmp_path / "x.nc"
    savers = [threading.Thread(target=result(float(value)).save, args=(path,)) for value in range(4)]
    for saver in savers:
        saver.start()
    for saver in savers:
        saver.join()
    assert float(read(path).data["logit_diff"][0, 0, 0]) in range(4)
    assert list(tmp_path.iterdir()) == [path]


def test_a_saved_file_may_be_read_by_others(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    assert result().save(tmp_path / "x.nc").stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("where", ["nowhere/x.nc", "."])
def test_saving_where_one_cannot_is_refused(where, tmp_path):
    with pytest.raises(ResultError) as caught:
        result().save(tmp_path / where)
    assert caught.value.fix == 'result.save("result.nc")'


def foreign(path: Path, **attrs: Any) -> None:
    with_head = xr.Dataset({"a": 1}, attrs={"nbpatch": json.dumps(attrs)} if attrs else {})
    with_head.to_netcdf(path, group="data", engine="h5netcdf")
    xr.Dataset().to_netcdf(path, "a", group="baselines", engine="h5netcdf")


@pytest.mark.parametrize("kind", ["text", "empty", "cut", "foreign", "list", "other format", "no version"])
def test_a_file_that_holds_no_result_is_refused(kind, tmp_path):
    path = tmp_path / "x.nc"
    if kind == "cut":
        content = result().save(path).read_bytes()
        path.write_bytes(content[: len(content) // 2])
    elif kind in ("text", "empty"):
        path.write_text("hello" if kind == "text" else "")
    else:
        head = {"other format": {"format": "x", "version": 1}, "no version": {"format": "nbpatch-result"}}
        foreign(path, **head.get(kind, {}))
        if kind == "list":
            xr.Dataset({"a": 1}, attrs={"nbpatch": "[1]"}).to_netcdf(path, "a", group="data", engine="h5netcdf")
    with pytest.raises(ResultError) as caught:
        read(path)
    assert caught.value.what in ("not a file saved by nbpatch.", "the file is of another version.")
    assert caught.value.seen
    assert caught.value.fix


def test_a_file_of_a_newer_version_says_so(tmp_path):
    foreign(tmp_path / "x.nc", format="nbpatch-result", version=99)
    with pytest.raises(ResultError) as caught:
        read(tmp_path / "x.nc")
    assert str(caught.value) == (
        "the file is of another version.\n  in     read\n  seen   version 99, this nbpatch reads version 1\n"
        "  try    pip install -U nbpatch"
    )


def test_a_missing_file_names_those_that_are_there(tmp_path):
    result().save(tmp_path / "other.nc")
    with pytest.raises(ResultError) as caught:
        read(tmp_path / "x.nc")
    assert "other.nc" in caught.value.fix
    with pytest.raises(ResultError, match="no such file") as caught:
        read(tmp_path / "nowhere" / "x.nc")
    assert "there is no folder" in caught.value.fix


def test_a_saved_result_opens_without_torch(tmp_path):
    path = result(direction="both", tokens=UNICODE, over=("layer", "pos")).save(tmp_path / "x.nc")
    program = f"""
import sys
class Block:
    def find_spec(self, name, *rest):
        if name.split(".")[0] in ("torch", "transformers", "transformer_lens", "pickle5"):
            raise ImportError(name)
sys.meta_path.insert(0, Block())
import nbpatch
one = nbpatch.read({str(path)!r})
print(one)
one.recovered(), one.to_frame(), one.card()
assert one.plot().axes
assert one.to_html({str(tmp_path / "x.html")!r}).exists()
assert "image/png" in one._repr_mimebundle_()[0]
assert "torch" not in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "日本" in done.stdout
