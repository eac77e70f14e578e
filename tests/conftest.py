"""What all tests share: a quiet offline process, one small model, a Hypothesis profile."""

import os

# Before anything imports a Hugging Face library: no test asks the network for anything.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")

import hypothesis
import pytest
import typecheck

hypothesis.settings.register_profile(
    "nbpatch", deadline=None, max_examples=30, derandomize=bool(os.environ.get("CI")), print_blob=True
)
hypothesis.settings.load_profile("nbpatch")
typecheck.check_as_needed()


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Small models are slower on many threads, and two workers share two cores."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny():
    """The embedded model, loaded once a session; tests must not change it."""
    import nbpatch

    return nbpatch.load("tiny")


@pytest.fixture
def untyped():
    """Lets a test pass what no annotation allows, as a user can: type checks run under pytest only."""
    from jaxtyping import config

    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
