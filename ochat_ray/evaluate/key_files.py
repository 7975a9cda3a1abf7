"""API keys of endpoints, from environment variables or from files that they name."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from ochat_ray.errors import UserError

OPENAI_URL = "https://api.openai.com/v1"

Role = Literal["models", "baseline", "judge"]
KEYS: dict[Role, str] = {
    "models": "OCHAT_RAY_API_KEY",
    "baseline": "OCHAT_RAY_BASELINE_API_KEY",
    "judge": "OCHAT_RAY_JUDGE_API_KEY",
}
"""Environment variable with the API key of each endpoint."""


def key_for(role: Role, url: str, models_url: str) -> str:
    """Return the API key for an endpoint from the environment; empty if there is none.

    Each endpoint has its own variable. OPENAI_API_KEY is sent only to OpenAI, and the models' key
    to another endpoint only if it is on the same server.

    Raises:
        UserError: A variable with _FILE appended does not name a valid file.
    """
    own = environment_key(KEYS[role])
    if url.rstrip("/") == OPENAI_URL:
        key = environment_key("OPENAI_API_KEY")
        return key if role == "models" else own or key
    if own or role == "models":
        return own
    shared = environment_key(KEYS["models"])
    if shared and urlsplit(url)[:2] != urlsplit(models_url)[:2]:
        print(f"no API key is sent to {url}; set {KEYS[role]} if it needs one", file=sys.stderr)
        return ""
    return shared


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
