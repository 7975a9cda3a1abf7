"""Run the demo with `python -m ochat_ray.demo`."""

import sys

from ochat_ray.demo.pipeline import main

sys.exit(main(sys.argv[1:]))
