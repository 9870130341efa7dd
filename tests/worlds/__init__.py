"""Whole gateways from seeds: GMN, journal, data nodes, peers and tenants, and packets through all of them.

Everything but the machine is real: the IKE engines of both sides, the GMN's services and its journal, the
planes of `roles/gin.py`, `gen.py` and `gpn.py` behind the real reconciliation of desired state, the peers'
ESP. Simulated are time (`trio.testing.MockClock`), the network (`net.py`) and the control channel
(`tests/support/gmn_fabric.py`).

`scenario.py` draws what happens from a seed and runs it; `judge.py` holds it to the promises.
`python -m tests.worlds SEED` repeats one seed exactly; `make worlds ARGS=600` hunts for so many seconds.
"""
