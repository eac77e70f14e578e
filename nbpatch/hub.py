"""Models by name: the embedded one, a folder, or a hub id, from the local cache first and the network after."""

import socket
import urllib.parse
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from nbpatch.errors import ModelError


def folder_of(name: str) -> Path | None:
    """Returns the folder that `name` means, or None for a hub id."""
    if name == "tiny":
        return Path(str(files("nbpatch") / "tiny" / "model"))
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith((".", "~")) or path.exists():
        raise ModelError(
            "no such model folder.",
            where=f"load({name!r})",
            seen=str(path),
            fix='nbp.load("tiny") or an existing folder',
        )
    return None


def from_pretrained(source: str, name: str, dtype: torch.dtype, *, local: bool) -> tuple[Any, Any]:
    """Returns model and tokenizer from a folder or from the hub: what is cached first, then the network."""
    try:
        try:
            return _read(source, dtype, local=True)
        except OSError:
            if local or not _hub_answers():
                raise
            return _read(source, dtype, local=False)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        first = str(error).strip().split("\n", 1)[0]
        raise ModelError(
            f"cannot load {name!r}." if local else f"cannot load {name!r} from the Hugging Face hub.",
            where="load",
            seen=first
            if local
            else f"not in the local cache, and the hub does not have it or cannot be reached: {first}",
            fix='nbp.load("tiny") needs no network; nbp.load("./folder") takes a folder made by save_pretrained',
        ) from error


def _read(source: str, dtype: torch.dtype, *, local: bool) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _quiet_loading():
        hf = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, local_files_only=local)
        return hf, AutoTokenizer.from_pretrained(source, local_files_only=local)


def _hub_answers() -> bool:
    """Whether the hub can be reached, asked once and briefly: transformers itself retries for half a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies():
        return True
    host = urllib.parse.urlparse(constants.ENDPOINT)
    try:
        socket.create_connection((str(host.hostname), host.port or 443), timeout=3).close()
    except OSError:
        return False
    return True


@contextmanager
def _quiet_loading() -> Generator[None]:
    """Turns transformers' progress bars off for a moment, and back on only if they were."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
