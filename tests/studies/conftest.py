"""What the tests of runs begin with."""

from __future__ import annotations

import pytest

from tests.studies.folders import ASKED
from trimtab.studies.folder import RunFolder


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path, "My study", ASKED)
