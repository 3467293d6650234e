"""The interface of engines, which make the runs: processes of this machine (machine), or Ray tasks (cluster)."""

from typing import Any, Protocol

PROCESSES, RAY = "processes", "ray"
ENGINES = (PROCESSES, RAY)


class Engine(Protocol):
    """An engine that makes runs. Each method raises lab.Refused if the engine is lost."""

    def capacity(self) -> int:
        """Return how many runs can run at once."""

    def submit(self, request: dict[str, Any]) -> Any:
        """Start a run, and return a ticket that identifies it. At most `capacity` runs may run at once."""

    def finished(self, tickets: list[Any], timeout_s: float) -> list[Any]:
        """Wait at most timeout_s seconds for a run to end, and return the tickets of runs that have ended.

        `tickets` are those of all runs that have not ended yet.
        """

    def outcome(self, ticket: Any) -> dict[str, Any]:
        """Return the outcome of a run that has ended, a dict as `client.Server.outcome` returns it."""
