"""Other engines running the same architecture, to be timed beside ours: what a benchmark compares with."""
