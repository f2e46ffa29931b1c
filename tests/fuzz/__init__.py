"""Fuzzers of the loss: ``python -m tests.fuzz --seconds 60 --seed 0``. tests/fuzz/test_fuzz.py runs a few cases of each."""
