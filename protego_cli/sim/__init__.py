"""The simulator: packing policies on a trace of tunnels' loads, and traces to run them on.

`trace.py` says what a trace is, `reading.py` and `writing.py` what its files are like, `generator.py` makes
synthetic ones and `recorder.py` one from a live cluster. `engine.py` lets a policy place tunnels through a
trace, step by step; `measures.py` says what that comes to; `plots.py` draws it.
"""
