"""Evaluate a served model. See `python jobs/evaluate.py --help`."""

from __future__ import annotations

import sys

from ochat_ray.jobs.evaluate import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], "jobs/evaluate.py"))
