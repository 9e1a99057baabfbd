"""What every test gets: checked shapes, no hub, property tests that repeat, and the bundled model, loaded once."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports Hugging Face: a test that needs the hub is wrong
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import config, install_import_hook

from tests.typecheck import checked

install_import_hook("trimtab", f"{checked.__module__}.{checked.__name__}")

settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("here"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")


@pytest.fixture
def unchecked():
    """Switch the shape check off, to see what a user gets who gives an array of the wrong shape."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def bundled():
    """The bundled model, SmolLM2-135M-Instruct, in float32 on the CPU."""
    import trimtab

    return trimtab.load("smollm2-135m-instruct")
