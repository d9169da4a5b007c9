"""What all tests share: examples without a time limit, and the runners of emulated boards, built at most once."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tvmq.runtime.toolchain import cached_runner
from tvmq.target import get_target

# Tests are not for times: a machine with other work to do is no mistake.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

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
