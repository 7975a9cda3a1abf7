"""Show what runs on a cluster. See `python jobs/status.py --help`."""

from __future__ import annotations

import sys

from ochat_ray.jobs.status import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], "jobs/status.py"))
