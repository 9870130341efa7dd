"""Fuzzing of everything that takes bytes from the network: a short gate in every run, hunts on demand.

- `targets.py`: the entrances, each with datagrams to start from.
- `test_gate.py`: every target under a derandomised Hypothesis; fails when a decoder is never entered.
- `hunt.py`: `make fuzz`, coverage-guided, for as long as one likes.
"""
