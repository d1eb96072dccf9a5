"""EleutherAI's lm-eval harness over a model that this package loaded, with the routing of every task recorded."""
