"""What the kernel allows this process: as many files as its connections may need, and no core file."""

import logging
import resource

log = logging.getLogger("conch")

SPARE = 256
"""Files beside those of the connections: the store's, the log, libraries, a model's checks."""


def claim(connections: int) -> int:
    """Ask for the files that so many connections need, each with one to a model; returns how many it can be.

    A core file would hold keys and prompts: from here on there is none.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections + SPARE
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return connections
    possible = max((soft - SPARE) // 2, soft // 4)
    log.warning(
        "max_connections is %d instead of %d: this process may open %d files only; raise LimitNOFILE, or ulimit -n",
        possible,
        connections,
        soft,
    )
    return possible
