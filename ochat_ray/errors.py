"""Errors with a one-line message for users."""


class UserError(ValueError):
    """Error that the user can fix; the message is one line: what is wrong and what to do."""


class JobFailedError(RuntimeError):
    """Error that no other option would avoid, such as a bug; the message is one line.

    Args:
        detail: printed above that line, such as the traceback of a bug.
    """

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


def is_store_failure(error: BaseException) -> bool:
    """Return whether S3 failed or refused a request, which does not indicate a fault in the file.

    pyarrow has no exception type for it.
    """
    return isinstance(error, OSError) and "AWS Error " in str(error)


def first_line(error: BaseException, limit: int | None = None) -> str:
    """Return the first line of an error's message, or its type's name if the message is empty.

    `limit` is the maximum number of characters.
    """
    return str(error).strip().split("\n")[0].rstrip()[:limit] or type(error).__name__


def one_line(error: BaseException, limit: int | None = 200) -> str:
    """Return an error's whole message as one line, or its type's name if the message is empty.

    `limit` is the maximum number of characters.
    """
    return " ".join(str(error).split())[:limit] or type(error).__name__
