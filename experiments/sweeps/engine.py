"""What the loop asks of whatever makes the runs: this machine's processes (machine), or Ray's (cluster)."""

from typing import Any, Protocol

PROCESSES, RAY = "processes", "ray"
ENGINES = (PROCESSES, RAY)


class Engine(Protocol):
    """A place for runs. Each method raises lab.Refused where the place is lost."""

    def capacity(self) -> int:
        """How many runs go on at once."""

    def submit(self, request: dict[str, Any]) -> Any:
        """Have a run made; returns the ticket to ask for it. At most `capacity` runs go on at once."""

    def finished(self, tickets: list[Any], timeout_s: float) -> list[Any]:
        """Those that have ended, after at most so many seconds; `tickets` are all that have been submitted."""

    def outcome(self, ticket: Any) -> dict[str, Any]:
        """{"status": exit status}, also with "lost" or "full": why, as `client.Server.outcome` has it."""
