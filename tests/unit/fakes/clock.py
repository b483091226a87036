"""The simulator's clock, on which no test waits."""

from gateway.simulator.clock import VirtualLoop as VirtualLoop
from gateway.simulator.clock import run as run
