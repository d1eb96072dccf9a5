"""One file for each learned policy, of the policy's name; the folder is the registry. A file has

fit(split, settings, progress) -> Fitted     weights under the names that the policy reads
judge(split, path) -> dict                   optional: what else to report of the validation requests
"""
