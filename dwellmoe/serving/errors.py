"""Errors as OpenAI's clients read them."""

from typing import Any

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "invalid_request_error",
    429: "rate_limit_error",
}


class RequestError(Exception):
    """A request that gets no answer; `status` is that of HTTP, `param` the field that is to blame."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def fields(self) -> dict[str, Any]:
        return error_fields(self.status, self.message, self.param, self.code)


class GenerationFailed(RequestError):
    """A generation that ended before its answer did."""


def error_fields(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """The body of a response that is an error."""
    kind = KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def unknown_model(name: str, known: list[str]) -> RequestError:
    message = f"The model '{name[:200]}' does not exist here: choose from {', '.join(known)}"
    return RequestError(404, message, param="model", code="model_not_found")
