"""The simulator: packing policies on a trace of tunnels' loads, and traces to run them on.

`trace.py` says what a trace is; `reading.py`, `clock.py`, `finishing.py`, `writing.py` and `parquet.py`, what
its files are like. `generator.py` makes synthetic ones, `recorder.py` one from a live cluster's counters.
`engine.py` lets a policy place tunnels through a trace, step by step, on the GPNs of `fleet.py`;
`measures.py` says what that comes to, `comparison.py` runs several, `plots.py` draws them.
"""
