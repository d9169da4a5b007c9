"""``tvmq targets``."""

from __future__ import annotations

import dataclasses

import tvmq
from tvmq.cli.answer import Answer, Debug, Json, answers, text_table

__all__ = ["targets_command"]


@answers
def targets_command(json: Json = False, debug: Debug = False) -> Answer:
    """List what networks can be compiled for."""
    targets = tvmq.targets()
    rows = [["target", "core", "description"]]
    rows += [[target.name, target.mcpu, target.description] for target in targets]
    return Answer([dataclasses.asdict(target) for target in targets], text_table(rows))
