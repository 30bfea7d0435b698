"""bilevax compared with other libraries on the same work: `python -m benchmarks.peers`; see docs/peers.md."""
