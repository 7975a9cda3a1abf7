"""Errors that a user, rather than a developer, is meant to read, in one line."""


class UserError(ValueError):
    """Something the user can mend; its text is one line: what is wrong and what to do."""


def is_store_failure(error: BaseException) -> bool:
    """Return whether S3 failed or refused a request, which says nothing about a file's content.

    pyarrow has no type for it.
    """
    return isinstance(error, OSError) and "AWS Error " in str(error)
