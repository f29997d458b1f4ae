"""Which process of a run this one is, as torchrun says it in the environment. It does without torch, because the command line needs it
before torch is loaded.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping

from attrs import frozen

from stackwise.errors import UserError

JOB, ATTEMPT = "STACKWISE_JOB", "STACKWISE_ATTEMPT"
"""Set by `stackwise run --ranks`: an id of all attempts of one command, and the number of this attempt, from 0."""


@frozen
class Place:
    """One process among those of a run."""

    rank: int = 0
    ranks: int = 1
    local_rank: int = 0
    """The rank among the processes of this machine."""
    host: str = ""
    job: str = ""
    """The same in every attempt of one command; empty where runs are not restarted."""
    attempt: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files of the run and shows its progress."""
        return self.rank == 0

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.ranks} on {self.host}"

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> Place:
        """Read the environment.

        Raises:
            UserError: torchrun's variables are there in part, or are not numbers.
        """
        if not environment.get("WORLD_SIZE") or environment["WORLD_SIZE"] == "1":
            return cls()
        try:
            rank, ranks = int(environment["RANK"]), int(environment["WORLD_SIZE"])
            local, attempt = (
                int(environment.get("LOCAL_RANK", rank)),
                environment.get(ATTEMPT, environment.get("TORCHELASTIC_RESTART_COUNT")),
            )
            if not 0 <= rank < ranks:
                raise ValueError(f"RANK {rank} of WORLD_SIZE {ranks}")
            host = platform.node()
            job = environment.get(JOB) or f"{environment.get('TORCHELASTIC_RUN_ID', '')}@{host}:{os.getppid()}"
            return cls(rank, ranks, local, host, "" if attempt is None else job, int(attempt or 0))
        except (KeyError, ValueError) as error:
            raise UserError(
                f"WORLD_SIZE is {environment['WORLD_SIZE']}, so this is one process of several, and {error} does not fit it: start the "
                "run by `stackwise run --ranks N` or torchrun, which set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, or unset WORLD_SIZE"
            ) from None
