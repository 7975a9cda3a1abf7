"""API keys from environment variables, or from files that they name."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ochat_ray.errors import UserError


def environment_key(name: str) -> str:
    """Return the key in the variable `name`, or in the file that `name`_FILE names; else "".

    A path, unlike a key, may be in a job's runtime environment, which Ray prints.

    Raises:
        UserError: Both variables are set, or the file is unreadable, readable by every user, or not
            one line. No message contains the key.
    """
    key, file = os.environ.get(name, ""), os.environ.get(f"{name}_FILE", "")
    if not file:
        return key
    if key:
        raise UserError(f"{name} and {name}_FILE are both set; set one of them")
    path = Path(os.path.expanduser(file))
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read the file that {name}_FILE names: {type(error).__name__}; it must "
            "exist on the node that runs the job, the head of a cluster"
        ) from None
    if mode & stat.S_IROTH:
        raise UserError(f"every user can read the file that {name}_FILE names; chmod 600 {path}")
    if len(text.split()) != 1:
        raise UserError(f"the file that {name}_FILE names must hold one line, the key")
    return text.strip()
