"""What can go wrong for a caller. Every error names what was asked and what came back."""


class RewardClientError(Exception):
    """Base of everything that this package raises on purpose."""


class Refused(RewardClientError):
    """This request can never succeed, as the service says or the client sees before it asks.

    It is not asked again. `status` is the HTTP status, 0 over gRPC and where nothing was asked;
    `code` and `field` are the service's (`pairs[3].response`).
    """

    def __init__(self, message: str, status: int, code: str, field: str | None) -> None:
        super().__init__(message, status, code, field)
        self.status = status
        self.code = code
        self.field = field

    def __str__(self) -> str:
        return str(self.args[0])


class Unavailable(RewardClientError):
    """No answer before the deadline. `attempts` were made; the last failure is in the message."""

    def __init__(self, message: str, attempts: int) -> None:
        super().__init__(message, attempts)
        self.attempts = attempts

    def __str__(self) -> str:
        return str(self.args[0])


class BadAnswer(RewardClientError):
    """An answer that cannot be trusted: not one finite reward per pair, or of another bundle."""
