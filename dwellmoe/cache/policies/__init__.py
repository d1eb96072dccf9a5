"""One file a policy; the folder is the registry. `base.py` states what a policy is."""
