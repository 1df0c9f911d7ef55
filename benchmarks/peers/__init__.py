"""How fast other libraries train on the same task: one script a peer, each run in a virtual environment of its own."""
