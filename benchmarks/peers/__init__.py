"""bilevax beside other libraries on the same work: `python -m benchmarks.peers`; docs/peers.md tells all of it."""
