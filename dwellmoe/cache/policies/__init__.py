"""One file a policy; the folder is the registry. `base.py` is their contract."""
