"""Least-stale eviction (SpecMD, arXiv 2602.03921): what the present token step has not used leaves first.

Among those, and then among the others, the one used longest ago leaves. Where an expert becomes resident only
when it is requested, as in this cache, that is exactly LRU: what the present step used was used last. The
rule differs where prefetched experts displace residents; here they wait outside the cache.
"""

from dwellmoe.cache.policies.lru import Lru

policy = Lru
