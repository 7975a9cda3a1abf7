"""The one exception that a user, rather than a developer, is meant to read."""


class UserError(ValueError):
    """Something the user can mend; its text is one line: what is wrong and what to do."""
