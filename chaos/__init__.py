"""The fault suite: breaks workers, Redis and the network on purpose, and checks what was promised.

``make chaos`` runs all of it; `docs/guarantees.md` says what is promised. Each module of
`chaos.faults` has one scenario or several of a kind.
"""
