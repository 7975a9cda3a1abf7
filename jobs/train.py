"""Fine-tune a model on token tables. See `python jobs/train.py --help`."""

from __future__ import annotations

import sys

from ochat_ray.jobs.train import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], "jobs/train.py"))
