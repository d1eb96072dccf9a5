"""EleutherAI's lm-eval harness over a loaded model, with the routing of every task recorded."""
