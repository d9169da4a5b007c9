"""``python -m tvmq.cli``, for where the ``tvmq`` script is not on the path."""

from __future__ import annotations

from tvmq.cli import main

main()
