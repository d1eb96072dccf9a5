"""The reporting block: every figure against a slow and obvious version, on random traces."""

import json
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from dwellmoe.cache.replay import expert_overlap
from dwellmoe.cache.replay.gap import gap_share
from dwellmoe.cache.replay.memory_equivalent import memory_equivalent
from dwellmoe.cache.replay.negative_results import NOT_SHOWN, UNSURE, WORSE
from dwellmoe.cache.replay.replay import replay
from dwellmoe.cache.replay.report_block import conformance_trace, report_block
from dwellmoe.cache.replay.report_lines import UNKNOWN, report_lines, sections
from dwellmoe.cache.trace import DECODE, PREFILL, RoutingTrace
from dwellmoe.errors import UserError
from dwellmoe.eviction_training.fit import FitSettings, fit
from tests.cache.reference import ReferenceCache, flatten, requests_of
from tests.cache.traces import random_trace, sticky_trace

ONLINE = ("lru", "lfru")


def texts_trace(seed=0, batched=False, words=6):
    """A random trace of texts of few words in two categories; batched: several requests run together."""
    base = random_trace(seed, steps=240, requests=12, prefill=0.4)
    rng = np.random.default_rng(seed + 100)
    trace = replace(
        base,
        token_ids=rng.integers(0, words, base.steps).astype(np.int32),
        categories={request: "ab"[request % 2] for request in range(12)},
        chat_template=bool(seed % 2),
        expert_bytes=(10, 20, 30),
    )
    if not batched:
        return trace
    position = np.arange(base.steps) - np.searchsorted(base.request, base.request)
    order = np.lexsort((base.request, position, base.phase))
    step = np.where(base.phase == DECODE, 1000 + position, position)[order]
    batch_step = np.cumsum(np.append(0, step[1:] != step[:-1])).astype(np.int32)
    return replace(trace.take(order), batch_step=batch_step)


def nearest_rank(values, share):
    return sorted(values)[max(0, int(np.ceil(share * len(values))) - 1)]


class CountingCache(ReferenceCache):
    """The slow cache, which also keeps the misses and distinct experts of each request to it."""

    def run(self, requests, access="atomic"):
        self.step_misses, self.step_experts = [], []
        self.plan = self._uses(requests, access)
        totals, self.clock = [0, 0, 0], 0
        for index, (step, _, emptied, ids) in enumerate(requests):
            before = totals[1]
            if emptied:
                self.clear()
            self.request += 1
            for position, asked in enumerate([ids] if access == "atomic" else [[e] for e in ids]):
                self._request(asked, step, (index, position), totals, [], [])
            self.step_misses.append(totals[1] - before)
            self.step_experts.append(len(set(ids)))
        return totals


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("access", ["atomic", "sequential"])
@pytest.mark.parametrize("batched", [False, True])
def test_misses_of_a_step_and_distinct_experts(scope, access, batched):
    trace = texts_trace(1, batched)
    capacity = 12 if access == "atomic" and batched else 5
    slots = capacity * (3 if scope == "global" else 1)
    block = report_block(trace, [], [slots], scope=scope, access=access, resamples=0)
    for row in block["policies"]:
        caches = []
        for requests in flatten(requests_of(trace), scope, 3, 12, "never"):
            cache = CountingCache(row["policy"], slots)
            caches.append((cache, cache.run(requests, access)))
        misses = [count for cache, _ in caches for count in cache.step_misses]
        found = [row[f"step_misses_{name}"] for name in ("p50", "p95", "p99")]
        assert found == [nearest_rank(misses, share) for share in (0.5, 0.95, 0.99)]
        hits, missed, first = np.sum([totals for _, totals in caches], axis=0)
        assert (row["hits"], row["misses"], row["compulsory_misses"]) == (hits, missed, first)
        tokens = int((trace.phase == DECODE).sum())
        assert (
            row["miss_bytes_per_token"]
            == replay(trace, row["policy"], slots, scope=scope, access=access).miss_bytes_per_token
        )
    experts = [count for cache, _ in caches for count in cache.step_experts]
    (regime,) = block["regime"]
    assert regime["distinct_over_capacity_mean"] == pytest.approx(np.mean(experts) / capacity)
    assert regime["distinct_over_capacity_p95"] == nearest_rank(experts, 0.95) / capacity
    assert regime["distinct_over_capacity_share_above_1"] == np.mean(np.array(experts) > capacity)
    facts = block["replay"]
    assert facts["accesses"] == tokens * 9 and facts["repeated_accesses"] == tokens * 9 - sum(experts)
    assert (facts["repeated_accesses"] > 0) == batched


@pytest.mark.parametrize("access", ["atomic", "sequential"])
def test_the_gap_is_split_into_what_passes_through_and_the_future(access):
    trace = texts_trace(2)
    block = report_block(trace, ["lfu"], [4], access=access, resamples=0)
    rates = {row["policy"]: row["hit_rate"] for row in block["policies"]}
    (gap,) = block["gaps"]
    forced = replay(trace, "opt_forced", 4, access=access).hit_rate
    best = max(rates[name] for name in ("lru", "lfru", "lfu"))
    assert rates[gap["best_online"]] == best
    assert gap["by_passing_through"] == rates["opt"] - forced >= 0
    assert gap["by_the_future"] == forced - best >= 0
    assert gap["gap"] == pytest.approx(gap["by_passing_through"] + gap["by_the_future"])
    assert (gap["by_passing_through"] == 0) == (access == "atomic")
    shares = {row["policy"]: row["gap_shares"] for row in block["policies"]}
    assert shares["lfu"] == {name: gap_share(rates["lfu"], rates[name], rates["opt"]) for name in ONLINE}
    assert shares["lru"].keys() == {"lfru"} and shares["opt"] == {}


def texts_of(trace, category):
    """[(prompt, decoded tokens)] of the requests of a category."""
    wanted = [r for r in sorted(set(trace.request.tolist())) if category in ("all", trace.categories[r])]
    rows = {r: [(p, t) for q, p, t in zip(trace.request, trace.phase, trace.token_ids, strict=True) if q == r]
            for r in wanted}  # fmt: skip
    return {r: tuple([int(t) for p, t in found if p == phase] for phase in (PREFILL, DECODE))
            for r, found in rows.items()}  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("batched", [False, True])
def test_texts_by_category(seed, batched):
    trace = texts_trace(seed, batched, words=2)
    block = report_block(trace, [], [12], resamples=0)
    assert [row["category"] for row in block["texts"]] == ["all", "a", "b"]
    for row in block["texts"]:
        texts = texts_of(trace, row["category"])
        prompts = [prompt for prompt, _ in texts.values() if prompt]
        decoded = [text for _, text in texts.values() if text]
        assert row["prompts"] == len(prompts) and row["decoded_texts"] == len(decoded)
        assert row["prefixes"] == len({tuple(prompt[:8]) for prompt in prompts})
        assert row["endings"] == len({tuple(prompt[-8:]) for prompt in prompts})
        assert row["templates"] == len({(tuple(prompt[:8]), tuple(prompt[-8:])) for prompt in prompts})
        assert row["distinct_decoded_texts"] == len({tuple(text) for text in decoded})
        same = [a == b for one, other in combinations(decoded, 2) for a, b in zip(one, other, strict=False)]
        assert row["positional_agreement"] == pytest.approx(np.mean(same))
    whole = {r: prompt + text for r, (prompt, text) in texts_of(trace, "all").items()}
    beyond = 0
    for r, (prompt, _) in texts_of(trace, "all").items():
        shared = max(common_prefix(whole[r], whole[other]) for other in whole if other != r)
        beyond += len(whole[r]) > max(shared, len(prompt))
    assert block["workload"]["requests_beyond_shared_prefix"] == beyond


def common_prefix(one, other):
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def shares_of(trace, rows):
    """[L][E] share of uses of the given rows."""
    uses = np.zeros((trace.layers, trace.num_experts))
    for row in rows:
        for layer in range(trace.layers):
            for expert in trace.experts[row, layer]:
                uses[layer, expert] += 1
    return uses / uses.sum(axis=1, keepdims=True)


def slow_overlap(trace, one, other):
    return np.mean(np.minimum(shares_of(trace, one), shares_of(trace, other)).sum(axis=1))


def test_overlap_of_texts_that_hardly_share_words(monkeypatch):
    monkeypatch.setattr(expert_overlap, "FEW_WORDS", 0.12)
    trace = texts_trace(3, words=60)
    found = report_block(trace, [], [12], resamples=0)["workload"]["pairs"]
    expected = {"within": [], "across": []}
    for one, other in combinations(range(12), 2):
        rows = [np.flatnonzero(trace.request == request) for request in (one, other)]
        words = [set(trace.token_ids[part].tolist()) for part in rows]
        if len(words[0] & words[1]) / len(words[0] | words[1]) <= 0.12:
            kind = "within" if one % 2 == other % 2 else "across"
            decoded = [part[trace.phase[part] == DECODE] for part in rows]
            expected[kind].append(slow_overlap(trace, *decoded))
    assert all(expected.values())
    for kind, overlaps in expected.items():
        assert found[kind] == {"pairs": len(overlaps), "overlap": pytest.approx(np.mean(overlaps))}


def test_many_requests_are_drawn_from(monkeypatch):
    monkeypatch.setattr(expert_overlap, "CANDIDATES", 20)
    trace = texts_trace(3, words=60)
    drawn = expert_overlap._candidates(12)
    assert len(drawn) <= 20 and (drawn[:, 0] < drawn[:, 1]).all() and drawn.max() < 12
    found = report_block(trace, [], [12], resamples=0)["workload"]["pairs"]
    assert found == report_block(trace, [], [12], resamples=0)["workload"]["pairs"]


def test_bands_of_positions(monkeypatch):
    monkeypatch.setattr(expert_overlap, "BANDS", (0, 4, 9))
    trace = texts_trace(4, batched=True)
    rows = report_block(trace, [], [12], resamples=0)["workload"]["bands"]
    seen, bands = {}, [[], [], []]
    for row in range(trace.steps):
        if trace.phase[row] == DECODE:
            position = seen[trace.request[row]] = seen.get(trace.request[row], -1) + 1
            bands[(position >= 4) + (position >= 9)].append(row)
    assert [row["tokens"] for row in rows] == [len(band) for band in bands]
    for row, band in zip(rows, bands, strict=True):
        assert row["overlap_with_first"] == pytest.approx(slow_overlap(trace, bands[0], band))


def test_facts_of_the_workload():
    trace = texts_trace(5, batched=True)
    facts = report_block(trace, [], [12], resamples=0)["workload"]
    decoded = trace.request[trace.phase == DECODE].tolist()
    steps = [decoded.count(request) for request in sorted(set(decoded))]
    together = [trace.batch_step[trace.phase == DECODE].tolist().count(step)
                for step in set(trace.batch_step[trace.phase == DECODE].tolist())]  # fmt: skip
    assert facts["decode_steps"] == len(decoded) and facts["decode_steps_a_request_most"] == max(steps)
    assert facts["decode_steps_a_request_median"] == np.median(steps)
    assert facts["interleaved"] and facts["lock_step_recorded"] and facts["chat_template"] is True
    assert facts["rows_together_mean"] == np.mean(together) and facts["rows_together_most"] == max(together)
    alone = report_block(texts_trace(4), [], [12], resamples=0)["workload"]
    assert not alone["interleaved"] and not alone["lock_step_recorded"] and alone["rows_together_most"] == 1


def test_what_the_trace_does_not_record_is_said():
    block = report_block(random_trace(0), [], resamples=0)
    assert block["texts"] is None and block["workload"]["pairs"] is None
    assert block["workload"]["chat_template"] is None
    cells = {section.title.split()[0]: section.rows for section in sections(block)}
    assert cells["Texts"][0][1] == UNKNOWN and cells["Overlap"][0][1:] == (UNKNOWN, UNKNOWN)
    workload = {row[0]: row[1] for row in cells["Workload"]}
    unknown = [name for name, value in workload.items() if value == UNKNOWN]
    assert {"chat template", "requests that decode beyond a prefix shared with another"} <= set(unknown)
    (policies,) = [section for section in sections(block) if section.title == "Policies"]
    at = policies.head.index("bytes a token")
    assert {row[at] for row in policies.rows} == {UNKNOWN}


def test_conformance_trace():
    block = report_block(conformance_trace(), [], [2], resamples=0)
    row = block["policies"][0]
    assert (row["policy"], row["hits"], row["misses"], row["compulsory_misses"]) == ("lru", 12, 18, 12)
    assert (row["step_misses_p50"], row["step_misses_p95"]) == (1, 2)
    assert [block["replay"][f"conformance_{name}"] for name in ("hits", "misses", "first_uses")] == [
        12,
        18,
        12,
    ]


def test_fit_source(tmp_path):
    trace, out = texts_trace(6), tmp_path / "uses.safetensors"
    fit(replace(trace, model="a model", source="a text"), "static", str(out), FitSettings(capacity=5))
    policies = [f"static:weights={out}", "ml_habits", "ml_forecast"]
    rows = report_block(trace, policies, [5], resamples=0)["policies"]
    sources = {row["policy"].partition(":")[0]: row["fit_source"] for row in rows}
    assert sources["lru"] is None and sources["ml_habits"]["model"] == "tiny-olmoe"
    expected = {
        "file": str(out),
        "model": "a model",
        "source": "a text",
        "categories": "a, b",
        "validation": "0.2",
    }
    assert {name: sources["static"][name] for name in expected} == expected
    assert int(sources["static"]["training_requests"]) == 10
    learning = {name: source["learns_while_running"] for name, source in sources.items() if source}
    assert learning == {"static": "no", "ml_habits": "no", "ml_forecast": "yes"}
    row = report_block(trace, ["ml_forecast:learning_rate=0"], [5], resamples=0)["policies"][-1]
    assert row["fit_source"]["learns_while_running"] == "no"


def test_print_and_json(tmp_path):
    block = report_block(texts_trace(7), ["lrfu:decay=0.95"], ["50%", 12], resamples=20)
    json.dumps(block, allow_nan=False)
    lines = report_lines(block, markdown=True)
    tables = [line.count("|") for line in lines if line.startswith("|")]
    titles = [line for line in lines if line.startswith("## ")]
    assert len(titles) == len(sections(block)) and len(tables) > 3 * len(titles)
    assert len(report_lines(block)) > len(titles)


def test_negative_results_name_what_they_hold_for():
    trace = random_trace(3, steps=900, requests=30, model="a model", source="a text")
    policies = ["lrfu:decay=0.95", "least_stale", "lifo", "random:seed=1"]
    block = report_block(trace, policies, [4, 7])
    misses = {(row["policy"], row["capacity"]): row["misses"] for row in block["policies"]}
    found = {(row["policy"], row["against"], row["capacity"]): row for row in block["negative_results"]}
    for (policy, against, slots), row in found.items():
        assert against in ONLINE and policy not in (against, "lru", "opt")
        assert row["ratio"] == misses[policy, slots] / misses[against, slots]
        assert row["ratio_ci95"][0] <= row["ratio"] <= row["ratio_ci95"][1]
        assert row["ratio_ci95"][1] >= 1 and (row["found"] == WORSE) == (row["ratio_ci95"][0] > 1)
    for slots in (4, 7):
        same = found["least_stale", "lru", slots]
        assert same["ratio_ci95"] == [1, 1] and same["found"] == NOT_SHOWN
    assert WORSE in {row["found"] for row in found.values()}
    better = [
        (policy, against, slots)
        for policy in ("lfru", *policies)
        for against in ONLINE
        for slots in (4, 7)
        if policy != against and (policy, against, slots) not in found
    ]
    assert better and all(misses[policy, slots] < misses[against, slots] for policy, against, slots in better)
    titles = {section.title: section.rows for section in sections(block)}
    scope = {row[0]: row[1] for row in titles["What the negative results hold for"]}
    assert scope["model"] == "a model" and scope["text"] == "a text"


def test_one_request_shows_no_difference():
    trace = random_trace(0, requests=1)
    rows = report_block(trace, ["lifo"], [5])["negative_results"]
    assert {row["found"] for row in rows} == {UNSURE} and {row["policy"] for row in rows} == {"lfru", "lifo"}


def test_what_a_routing_is_worth_in_cache():
    trace, base = (sticky_trace(np.random.default_rng(1), stay=stay) for stay in (0.7, 0.3))
    block = report_block(trace, [], [3, 4], against=replace(base, model="plain"), resamples=40)
    found = [memory_equivalent(trace, base, size, resamples=40).as_dict() for size in (3, 4)]
    assert block["memory_equivalents"] == found and block["compared_with"] == "plain"
    assert all(row["ratio"] > 1 for row in found)
    table = sections(block)[-1]
    assert "plain" in table.title and [row[0:2] for row in table.rows] == [("lru", "3"), ("lru", "4")]
    assert "Memory" not in sections(report_block(trace, [], [3], resamples=0))[-1].title


@pytest.mark.slow
def test_the_interval_of_a_hit_rate_covers_the_true_one():
    """Of 95 % intervals of 40 requests, about as many hold the hit rate of 20,000 requests."""

    def row(seed, requests, resamples):
        trace = sticky_trace(np.random.default_rng(seed), requests, stay=0.6)
        return report_block(trace, [], [4], reset="request", resamples=resamples)["policies"][0]

    truth = row(0, 20_000, 0)["hit_rate"]
    found = [row(seed, 40, 400)["hit_rate_ci95"] for seed in range(1, 121)]
    covered = np.mean([low <= truth <= high for low, high in found])
    assert 0.88 <= covered <= 0.995
    assert np.mean([high - low for low, high in found]) < 0.1 * truth


def test_a_cache_below_one_step_is_refused():
    with pytest.raises(UserError, match="capacity 2"):
        report_block(random_trace(0), [], [2])
    assert report_block(texts_trace(1, batched=True), [], resamples=0)["regime"][0]["capacity"] > 3


def test_metadata_reads_back_and_is_optional(tmp_path):
    trace = texts_trace(1)
    trace.save(tmp_path / "t.safetensors")
    back = RoutingTrace.load(tmp_path / "t.safetensors")
    assert back.categories == trace.categories and back.chat_template is True
    random_trace(0).save(tmp_path / "plain.safetensors")
    plain = RoutingTrace.load(tmp_path / "plain.safetensors")
    assert plain.categories is None and plain.chat_template is None
