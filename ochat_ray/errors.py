"""Errors with a one-line message for users."""


class UserError(ValueError):
    """Error that the user can fix; the message is one line: what is wrong and what to do."""


def is_store_failure(error: BaseException) -> bool:
    """Return whether S3 failed or refused a request, which does not indicate a fault in the file.

    pyarrow has no exception type for it.
    """
    return isinstance(error, OSError) and "AWS Error " in str(error)
