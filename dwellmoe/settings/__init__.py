"""Settings of model, engine and Trainer, which the command line needs before anything imports torch.

The other settings are in the folders that they set up, which load quickly.
"""
