"""Convert conversations to token tables. See `python jobs/prepare.py --help`."""

from __future__ import annotations

import sys

from ochat_ray.jobs.prepare import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], "jobs/prepare.py"))
