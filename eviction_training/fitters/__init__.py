"""One file a learned policy, of the policy's name; the folder is the registry. A file has

LAYOUT                                   how its features lie, as the policy's own file says
fit(split, settings, progress) -> Fitted
"""
