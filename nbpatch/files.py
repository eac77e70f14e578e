"""Files of results: netCDF, two groups of labelled arrays and a head of plain values. Never pickle."""

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from nbpatch.errors import ResultError

_FORMAT = "nbpatch-result"
_FORMAT_VERSION = 1


def write_file(
    path: str | os.PathLike[str], data: xr.Dataset, baselines: xr.Dataset, values: Mapping[str, Any]
) -> Path:
    """Writes a result's parts and returns the path; an existing file is replaced only by a complete one.

    Raises:
        ResultError: the folder does not exist or cannot be written to.
    """
    target = Path(path).expanduser()
    if not target.parent.is_dir() or target.is_dir():
        what = "that is a folder." if target.is_dir() else "no such folder."
        seen = str(target if target.is_dir() else target.parent)
        raise ResultError(what, where="save", seen=seen, fix='result.save("result.nc")')
    head = {"format": _FORMAT, "version": _FORMAT_VERSION, **values}
    whole = data.assign_attrs(nbpatch=json.dumps(head, default=plain))
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        whole.to_netcdf(unfinished, "w", group="data", engine="h5netcdf")
        baselines.to_netcdf(unfinished, "a", group="baselines", engine="h5netcdf")
        unfinished.replace(target)
    except OSError as error:
        fix = "a folder you may write to, with room left"
        raise ResultError("cannot write there.", where="save", seen=f"{target}: {error}", fix=fix) from error
    finally:
        if unfinished.exists():
            unfinished.unlink()
    return target


def read_file(path: str | os.PathLike[str]) -> tuple[xr.Dataset, xr.Dataset, dict[str, Any]]:
    """Returns a result's parts: its data, its baselines, and the plain values.

    Raises:
        ResultError: no such file, or a file that holds no result, or one of a newer version.
    """
    source = Path(path).expanduser()
    if not source.is_file():
        near = ", ".join(sorted(one.name for one in source.parent.glob("*.nc"))[:5]) or "nothing ending in .nc"
        fix = f"in {source.parent}: {near}" if source.parent.is_dir() else f"there is no folder {source.parent} either"
        raise ResultError("no such file.", where="read", seen=str(source), fix=fix)
    try:
        data, baselines = _load(source, "data"), _load(source, "baselines")
        head = json.loads(data.attrs.pop("nbpatch"))
        data.attrs.pop("methods_card", None)
        version = int(head["version"]) if head["format"] == _FORMAT else 0
    except (OSError, KeyError, ValueError, TypeError) as error:
        seen = f"{source.name}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        fix = 'a file written by result.save("result.nc")'
        raise ResultError("not a file saved by nbpatch.", where="read", seen=seen, fix=fix) from error
    if version != _FORMAT_VERSION:
        seen = f"version {version}, this nbpatch reads version {_FORMAT_VERSION}"
        raise ResultError("the file is of another version.", where="read", seen=seen, fix="pip install -U nbpatch")
    return data, baselines, head


def _load(source: Path, group: str) -> xr.Dataset:
    with xr.open_dataset(source, group=group, engine="h5netcdf") as opened:
        return opened.load()


def plain(value: Any) -> Any:
    """Returns a NumPy number or array as JSON takes it; anything else by its name."""
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else repr(value)
