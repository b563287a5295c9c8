"""Benchmarks: one script a question, ``python -m bench.NAME``; all of them: ``python -m bench``."""
