# SPDX-License-Identifier: Apache-2.0
"""thawctl trace of a fleet that generates: what a reader of the file counts on."""
import collections
import json
import os
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from cluster import Cluster, Streams  # noqa: E402
from thaw import Daemon, PATIENCE


def nanoseconds(microseconds):
    return round(microseconds * 1000)


class TraceTest(unittest.TestCase):
    def daemon(self, *sets, width=256):
        d = Daemon(sets)
        self.addCleanup(d.close)
        d.sets.append(f"models.0.path={d.make_model(width=width)}")
        d.start().wait_ready()
        return d

    def trace(self, d, *more, while_generating=True):
        busy = Streams(d, [None] * 2 if while_generating else [], 40).go_on(1)
        try:
            p = d.ctl("trace", "-o", d.path("trace.json"), *more, json_output=False)
        finally:
            busy.stop()
        self.assertIn("ui.perfetto.dev", p.stderr)
        with open(d.path("trace.json"), encoding="utf-8") as f:
            return json.load(f)

    def check(self, trace):
        """Every event is of the format; spans of one thread do not overlap. Returns {process name: {track: spans}}."""
        names, threads, spans = {}, {}, collections.defaultdict(list)
        for e in trace["traceEvents"]:
            self.assertIn(e["ph"], ("M", "X"))
            if e["ph"] == "M" and e["name"] == "process_name":
                names[e["pid"]] = e["args"]["name"]
            elif e["ph"] == "M" and e["name"] == "thread_name":
                threads[e["pid"], e["tid"]] = e["args"]["name"]
            elif e["ph"] == "X":
                self.assertIn((e["pid"], e["tid"]), threads)  # named before it is used
                self.assertGreaterEqual(e["dur"], 0)
                self.assertGreaterEqual(e["ts"], 0)
                spans[e["pid"], e["tid"]].append(e)
        self.assertEqual(len(names), len(set(names.values())))
        for key, of_thread in spans.items():
            of_thread.sort(key=lambda e: (nanoseconds(e["ts"]), nanoseconds(e["dur"])))
            for a, b in zip(of_thread, of_thread[1:]):
                self.assertLessEqual(nanoseconds(a["ts"]) + nanoseconds(a["dur"]), nanoseconds(b["ts"]), (threads[key], a, b))
        tracks = {n: collections.defaultdict(list) for n in names.values()}
        for (pid, tid), of_thread in spans.items():
            tracks[names[pid]][threads[pid, tid].split(" ")[0]] += of_thread
        return tracks

    def trace_passes(self, d):
        """A trace with some passes in it, and its tracks; longer where the machine is busy."""
        for seconds in ("1", "8", "60"):
            trace = self.trace(d, "--seconds", seconds)
            tracks = self.check(trace)
            if sum(len(t["passes"]) for t in tracks.values()) > 3:
                break
        return trace, tracks

    def test_every_rank_has_its_tracks(self):
        """Two stages of two parts, weights on the drive."""
        d = self.daemon("compute.stages=2", "compute.tensor=2", "memory.weights=17MiB", width=512)
        tracks = self.trace_passes(d)[1]
        ranks = {n: t for n, t in tracks.items() if n.startswith("rank ")}
        self.assertEqual(sorted(n.split(" on ")[0] for n in ranks),
                         [f"rank {2 * s + p}: stage {s} part {p}" for s in (0, 1) for p in (0, 1)])
        for name, t in ranks.items():
            for track in ("compute", "drive", "link"):
                self.assertTrue(t[track], f"{name} has no {track}")
            self.assertLessEqual({"matmul", "attend", "norm"}, {e["name"] for e in t["compute"]})
            self.assertIn("allreduce", {e["name"] for e in t["link"]})
            layers = {e["args"]["layer"] for e in t["compute"] if "layer" in e["args"]}
            self.assertEqual(layers, set(range(0, 4)) if "stage 0" in name else set(range(4, 8)))
            self.assertTrue(all(e["args"]["bytes"] > 0 for e in t["drive"]))
        # rows go from stage to stage
        self.assertIn("rank 0", {e["args"]["peer"] for e in next(t for n, t in ranks.items() if "rank 2" in n)["link"]})
        passes = tracks["engine of tiny on " + os.uname().nodename]["passes"]
        self.assertTrue(passes)
        numbers = [e["args"]["pass"] for e in sorted(passes, key=lambda e: e["ts"])]
        self.assertEqual(numbers, list(range(numbers[0], numbers[0] + len(numbers))))
        self.assertEqual(d.stop(), 0)

    def test_ranks_of_two_nodes(self):
        """The coordinator's trace has the ranks of the other nodes: here on one host, so with one clock."""
        c = Cluster()
        self.addCleanup(c.close)
        trace, tracks = self.trace_passes(c.start(2))
        ranks = {n: t for n, t in tracks.items() if n.startswith("rank ")}
        self.assertEqual(len(ranks), 2)
        for name, t in ranks.items():
            for track in ("compute", "link"):
                self.assertTrue(t[track], f"{name} has no {track}")
        self.assertNotIn("aligned by wall clocks", json.dumps(trace))
        sent, received = ([e for e in t["link"] if e["name"] == name and e["args"]["peer"] == peer and e["args"]["bytes"] > 0]
                          for t, name, peer in zip((ranks[n] for n in sorted(ranks)), ("send", "receive"), ("rank 1", "rank 0")))
        self.assertTrue(sent and received)

    def refused_beside_another(self, d, seconds):
        """1 or 2: which of two traces is refused. None: they were not at the same time."""
        refused = None
        first = d.popen("trace", "-o", d.path("1.json"), "--seconds", seconds)
        while first.poll() is None and not refused:
            p = d.ctl("trace", "-o", d.path("2.json"), "--seconds", "0.1", check=False, json_output=False)
            if p.returncode:
                self.assertIn("is being traced", p.stderr)
                refused = 2
        said = first.communicate(timeout=PATIENCE)[1]
        if first.returncode:
            self.assertIn("is being traced", said)
            refused = 1
        return refused

    def test_one_rank_and_idle(self):
        """An idle model has little to tell, but a whole file; then another trace; two at once are refused."""
        d = self.daemon()
        self.check(self.trace(d, "--seconds", "0.2", "tiny", while_generating=False))
        self.assertTrue(self.check(self.trace(d, "--seconds", "0.3")))
        refused = next(filter(None, (self.refused_beside_another(d, seconds) for seconds in ("3", "60"))))
        self.assertFalse(os.path.exists(d.path(f"{refused}.json")))
        with open(d.path(f"{3 - refused}.json"), encoding="utf-8") as f:
            self.check(json.load(f))
        self.assertEqual(d.ctl("trace", "nobody", check=False, json_output=False).returncode, 4)
        self.assertEqual(d.ctl("trace", "--seconds", "61", check=False, json_output=False).returncode, 2)
        p = d.ctl("trace", "-o", "/proc/none/here", check=False, json_output=False)
        self.assertIn("/proc/none/here", p.stderr)
        self.assertEqual(p.returncode, 1)
        self.assertEqual(d.stop(), 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
