"""A gateway with fixed batches of any size: `python -m benchmarks.fixed_gateway SIZE FLAGS`."""

import sys
from dataclasses import replace

from gateway.__main__ import main
from gateway.policy.batch import Fixed
from gateway.policy.preset import PRESETS, STATIC

if __name__ == "__main__":
    PRESETS["static"] = replace(STATIC, batch=Fixed(int(sys.argv[1])))
    sys.exit(main(["gateway", "--policy", "static", *sys.argv[2:]]))
