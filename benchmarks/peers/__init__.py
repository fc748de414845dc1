"""One small program for each system that is measured. Each runs in an environment of its own; see `common`."""
