"""Where the runners of emulated boards come from: built at most once for all tests, and for all processes of tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tvmq.runtime.toolchain import cached_runner
from tvmq.target import get_target

EMULATED = ("raspberry-pi-4", "raspberry-pi-3-32")


@pytest.fixture(scope="session")
def runner_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Use the user's runners when they are built already, and leave no new ones behind when they are not."""
    with pytest.MonkeyPatch.context() as patch:
        if not all(cached_runner(get_target(name)).exists() for name in ("host", *EMULATED)):
            folder = tmp_path_factory.getbasetemp()
            # The folders of all processes that share the tests are in one.
            shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
            patch.setenv("XDG_CACHE_HOME", str(shared / "runners"))
        yield
