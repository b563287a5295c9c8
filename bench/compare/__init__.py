"""rlog beside what a Python program would otherwise use: ``python -m bench.compare``."""
