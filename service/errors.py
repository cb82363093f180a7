"""The error tree. Every refusal has a code, an HTTP status and a gRPC status; knows nothing else.

A message names the field, the value, the limit and the way out.
"""


class RewardError(Exception):
    """Base of every error that a caller may see. `field` is a path such as `pairs[3].response`."""

    code = "internal"
    http_status = 500
    grpc_status = "INTERNAL"

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field

    def as_dict(self) -> dict[str, str | None]:
        """The wire form: `{"code", "message", "field"}`."""
        return {"code": self.code, "message": self.message, "field": self.field}


class InvalidRequest(RewardError):
    """The request can never succeed as it stands."""

    code = "invalid_request"
    http_status = 400
    grpc_status = "INVALID_ARGUMENT"


class Unauthorized(RewardError):
    """The service has API keys and the request brought none of them."""

    code = "unauthorized"
    http_status = 401
    grpc_status = "UNAUTHENTICATED"


class NotFound(RewardError):
    """The URL's path is none of the service's."""

    code = "not_found"
    http_status = 404
    grpc_status = "UNIMPLEMENTED"


class MethodNotAllowed(RewardError):
    """The path is, but it takes another method."""

    code = "method_not_allowed"
    http_status = 405
    grpc_status = "UNIMPLEMENTED"

    def __init__(self, message: str, *, allowed: str) -> None:
        super().__init__(message, field="method")
        self.allowed = allowed


class TooLarge(RewardError):
    """More bytes, headers or pairs than the limit; split the request."""

    code = "too_large"
    http_status = 413
    grpc_status = "INVALID_ARGUMENT"


class TooLong(RewardError):
    """A prompt or a response is over its token limit and the caller asked for an error."""

    code = "too_long"
    http_status = 422
    grpc_status = "INVALID_ARGUMENT"


class Overloaded(RewardError):
    """The waiting line is full. Retry after `retry_after_s`."""

    code = "overloaded"
    http_status = 503
    grpc_status = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(Overloaded):
    """The pairs were not scored in time; those that had not run never will."""

    code = "deadline_exceeded"
    grpc_status = "DEADLINE_EXCEEDED"


class Draining(Overloaded):
    """The replica is leaving: what was accepted is answered, nothing new is taken."""

    code = "draining"
    grpc_status = "UNAVAILABLE"


class EngineFailure(RewardError):
    """The engine failed on this very row; its neighbours were scored."""

    code = "engine_failure"


class NonFiniteReward(EngineFailure):
    """The graph gave NaN or infinity. It is never sent as a reward."""

    code = "non_finite_reward"


class BundleError(RewardError):
    """The bundle is not what its manifest says, or cannot be served here."""

    code = "bundle"


class DeviceUnavailable(RewardError):
    """The device that was asked for cannot be used. Never answered by another one instead."""

    code = "device_unavailable"


class DataError(RewardError):
    """Preference data that cannot be used; names the file and the line."""

    code = "data"


class TrainingError(RewardError):
    """Training cannot go on: a loss that is not finite, a collapsed model, a bad configuration."""

    code = "training"
