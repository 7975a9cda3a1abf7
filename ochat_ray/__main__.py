"""Run the command `ochat-ray` with `python -m ochat_ray`."""

import sys

from ochat_ray.jobs.command import main

sys.exit(main())
