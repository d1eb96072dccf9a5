"""What runs inside the sandboxed process; the parent's side is evaluation/code_sandbox.py."""
