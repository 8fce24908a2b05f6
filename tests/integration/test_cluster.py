#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Clusters of two and three thawd on one machine, each with a store of its own: the tokens of one host, and what happens
when a node is killed, drained, restarted or refused."""
import glob
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import netns  # noqa: E402
from cluster import Cluster, Streams, free_port  # noqa: E402
from thaw import Daemon, flip_bits, wait_for

MODEL = os.environ.get("THAW_TEST_MODEL")
TOKENS = 60


class Fleet(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        """What eight requests at a time give on one host."""
        d = Daemon(["memory.weights=12MiB", "memory.kv=8MiB", "compute.backend=cpu"])
        cls.addClassCleanup(d.close)
        d.sets.append(f"models.0.path={d.make_model()}")
        cls.want = Streams.once(d.start().wait_ready(), TOKENS)
        d.stop()

    def cluster(self, *args):
        c = Cluster(*args)
        self.addCleanup(c.close)
        return c

    def alone(self, *sets, model=None):
        d = Daemon(list(sets))
        self.addCleanup(d.close)
        d.sets.append(f"models.0.path={model or d.make_model()}")
        return d.start().wait_ready()

    def at_work(self, c, count):
        """So many are, or will be: one that the machine keeps from beating for two seconds is lost for a while."""
        wait_for(f"{count} nodes at work", lambda: len(c.working()) == count)

    def same_tokens(self, daemon):
        self.assertEqual(Streams.once(daemon, TOKENS), self.want)

    def unharmed(self, daemon, strike, until, want=None):
        """strike() while eight streams run: none is lost, no token is changed, and they go on when it is so."""
        running = Streams(daemon, want or self.want, TOKENS)
        try:
            running.go_on()
            strike()
            wait_for("what has to come of it", until)
            running.go_on()
        finally:
            running.stop()
        self.assertEqual(running.lost(), [])
        self.assertEqual(running.changed(), 0)

    def test_tokens_of_one_host(self):
        """Two and three hosts, also with a coordinator that computes nothing: the tokens of one. Three are in two racks, whose links count
        by themselves."""
        for count, role in ((2, "both"), (3, "both"), (2, "coordinator")):
            c = self.cluster(role)
            racks = ("r1", "r1", "r2") if count == 3 else ()
            a = c.start(count, racks=racks)
            self.at_work(c, count)
            if racks:
                self.assertEqual({name: n["rack"] for name, n in c.shown().items()}, {"a": "r1", "b": "r1", "c": "r2"})
                wait_for("links of both classes", lambda: [(x["class"], x["links"]) for x in json.loads(
                    a.ctl("nodes").stdout).get("plan_links", [])] == [("rack", 1), ("cluster", 2)])
                wait_for("a plan with them", lambda: re.search(r"links inside racks: .*\nlinks between racks: ", json.loads(
                    a.ctl("placement").stdout)["placements"][0]["explanation"]))
            shown = json.loads(a.ctl("topology").stdout)["machines"]
            self.assertEqual(len(shown), count + (role == "coordinator"))
            self.assertEqual([m["name"] for m in shown if m["coordinator"]], ["a"])
            self.assertEqual([m["name"] for m in shown if not m["numa_nodes"] or not m["cpus"]], [])
            self.same_tokens(a)
            for d in reversed(c.nodes):
                self.assertEqual(d.stop(), 0)
            c.close()

    def test_models_share_the_budgets(self):
        """What one model has of a node's budgets, another cannot have; plan says so before, and is of all nodes."""
        c = self.cluster()
        a = c.start(2, "memory.kv=12MiB")
        model = a.sets[-1].split("=", 1)[1]
        shown = json.loads(a.ctl("placement").stdout)["placements"][0]
        self.assertGreater(shown["input"]["weights_all_bytes"], shown["input"]["pass_bytes"])
        self.assertEqual(shown["input"]["kv_budget_bytes"], 24 << 20)
        self.assertIn("DEVICE", shown["explanation"])
        for verb in (["plan", model], ["load", model, "--name", "two"]):
            p = a.ctl(*verb, check=False)
            self.assertEqual(p.returncode, 5, p.stdout)
            self.assertIn("beside the models that are loaded: ", p.stderr)
        p = json.loads(a.ctl("plan", model, "--weights", "16MiB", "--kv", "4MiB").stdout)["placement"]
        self.assertEqual(p["plan"]["cold_bytes"], 0)
        self.assertEqual(p["plan"]["hot_bytes"], p["input"]["pass_bytes"])
        self.assertEqual(p["plan"]["kv_bytes"], 8 << 20)
        a.ctl("unload", "tiny")
        wait_for("its memory", lambda: not a.ctl("plan", model, check=False).returncode)

    def test_explicit_map(self):
        """Layers go where cluster.map has them: to a node, or to two that share them. A node that it names is waited for, and missed when
        it is lost: nobody else gets its layers. Maps that are not the model's are refused by layer: its FAILED model, or the dry run."""
        c = self.cluster()
        a = c.node("a", "cluster.device_map=explicit", "cluster.map={layers.0-1: b, layers.2-7: [a, c]}")
        model = a.make_model()
        a.sets.append(f"models.0.path={model}")
        b = c.node("b")
        c.run(c.node("c"))
        c.run(a)
        missing = "cluster.map: layers.0-1 is on node b, which is not there"
        wait_for("word of what is missing", lambda: missing in a.log() and "event=waits_for_nodes" in a.log())
        c.run(b)
        a.wait_ready()
        shards = json.loads(a.ctl("placement").stdout)["placements"][0]["shards"]
        self.assertEqual([(s["node"], s["stage"], s["tp_rank"], s["first_layer"], s["last_layer"]) for s in shards],
                         [("b", 0, 0, 0, 1), ("a", 1, 0, 2, 7), ("c", 1, 1, 2, 7)])
        want = a.generate("some words", 10)
        small = ["plan", model, "--weights", "4MiB", "--kv", "2MiB", "--explain"]
        self.assertRegex(a.ctl(*small, json_output=False).stdout, r"0-1 +b ")
        self.assertNotRegex(a.ctl(*small, "--device-map", "balanced", json_output=False).stdout, r"0-1 +b ")
        p = a.ctl(*small, "--device-map", "zigzag", check=False)
        self.assertIn("none of auto, balanced, sequential, explicit", p.stderr)
        b.process.kill()
        b.process.wait()
        wait_for("the event", lambda: "event=fleet_down" in a.log())
        self.assertIn(missing, a.ctl("generate", "x", "-n", "1", check=False).stderr)
        c.run(b)
        a.wait_ready()
        self.assertEqual(a.generate("some words", 10), want)
        d = self.cluster().node("d", "cluster.device_map=explicit", "cluster.map={layers.0-5: elsewhere}", f"models.0.path={model}")
        refusal = "cluster.map: device_map: layers 6-"
        d.start()
        wait_for("the refusal", lambda: refusal in d.log() and "event=model_failed" in d.log())
        self.assertIn(refusal, d.ctl("models").stdout)
        d = self.cluster().node("d", "cluster.reserve={d: 100TiB}", f"models.0.path={model}")
        d.start()
        wait_for("the refusal", lambda: "event=model_failed" in d.log())
        self.assertRegex(d.log(), "does not fit: .* short")

    @unittest.skipUnless(MODEL, "THAW_TEST_MODEL is not set")
    def test_real_model(self):
        """SmolLM2 over two and three hosts: greedy tokens as on one."""
        real = ["compute.backend=cpu", "memory.weights=64MiB", "memory.kv=32MiB"]
        want = self.alone(*real, model=MODEL).generate("The capital of France is", 24)
        for count in (2, 3):
            c = self.cluster()
            a = c.start(count, *real, model=MODEL)
            self.at_work(c, count)
            self.assertEqual(a.generate("The capital of France is", 24), want)
            c.close()

    @unittest.skipIf(netns.why_not(), netns.why_not())
    def test_parts_over_hosts(self):
        """Two hosts (namespaces) share every layer: the tokens of two parts on one host, also when a part dies in 8 streams; when its
        host does, no request is lost, and the other one has whole layers in its store by then."""
        want = Streams.once(self.alone("compute.backend=cpu", "memory.weights=16MiB", "compute.tensor=2"), TOKENS)
        hosts = netns.Hosts(2)
        self.addCleanup(hosts.close)
        c = self.cluster("both", hosts)
        a = c.start(2, coordinator=["compute.tensor=2", "store.replicas=2"])
        b = c.nodes[1]
        shards = json.loads(a.ctl("placement").stdout)["placements"][0]["shards"]
        self.assertEqual([(s["stage"], s["tp_rank"], s["node"]) for s in shards], [(0, 0, "a"), (0, 1, "b")])
        self.assertIn("part 1/2", a.ctl("nodes", json_output=False).stdout)
        epoch, rank = self.epoch(a), b.ranks()[0]
        self.unharmed(a, lambda: os.kill(rank, signal.SIGKILL), lambda: self.epoch(a) > epoch and len(c.working()) == 2, want)
        wait_for("spare layers", lambda: re.search("node a has 8 of 8 layers .*event=spares_stored", a.log()))
        if "event=node_lost" not in a.log():  # which a busy machine may do
            self.assertNotIn("event=fewer_parts", a.log())
        kept = {f: os.stat(f).st_mtime_ns for f in glob.glob(a.path("store/*/*.tp*"))}
        self.unharmed(a, b.process.kill, lambda: c.working() == {"a"}, [None] * 8)  # fewer parts: other tokens
        self.assertEqual(kept, {f: os.stat(f).st_mtime_ns for f in glob.glob(a.path("store/*/*.tp*"))})
        self.assertIn("event=fewer_parts", a.log())

    @unittest.skipUnless(MODEL and os.environ.get("THAW_TEST_LONG"), "THAW_TEST_MODEL and THAW_TEST_LONG are not set")
    @unittest.skipIf(netns.why_not(), netns.why_not())
    def test_parts_of_the_real_model(self):
        """SmolLM2 with 3 parts over 3 hosts and with 2 stages of 3 over 6: the tokens of 3 parts on one host, each time. Over 4 hosts, in a
        stage of one and one of 3: the same tokens every time, also after a part died. 2 parts are refused."""
        real = ["compute.backend=cpu", "memory.kv=32MiB"]
        alone = ["memory.weights=200MiB", "memory.kv=96MiB", "compute.tensor=3"]
        want = self.alone(*real, *alone, model=MODEL).generate("The capital of France is", 24)
        for count in (3, 6):
            hosts = netns.Hosts(count)
            self.addCleanup(hosts.close)
            c = self.cluster("both", hosts)
            a = c.start(count, *real, "memory.weights=64MiB", model=MODEL, coordinator=["compute.tensor=3"])
            self.at_work(c, count)
            for _ in range(5):
                self.assertEqual(a.generate("The capital of France is", 24), want)
            c.close()
        hosts = netns.Hosts(4)
        self.addCleanup(hosts.close)
        c = self.cluster("both", hosts)
        a = c.start(4, *real, "memory.weights=64MiB", model=MODEL, coordinator=[
            "cluster.device_map=explicit", "cluster.map={layers.0-9: a, layers.10-29: [b, c, d]}"])
        shards = json.loads(a.ctl("placement").stdout)["placements"][0]["shards"]
        self.assertEqual([(s["node"], s["stage"], s["tp_rank"]) for s in shards], [("a", 0, 0), ("b", 1, 0), ("c", 1, 1), ("d", 1, 2)])
        text = a.generate("The capital of France is", 24)
        epoch = self.epoch(a)
        os.kill(c.nodes[2].ranks()[0], signal.SIGKILL)
        wait_for("the next group", lambda: self.epoch(a) > epoch)
        for _ in range(5):
            self.assertEqual(a.generate("The capital of France is", 24), text)
        c.close()
        c = self.cluster()
        a = c.node("a", "compute.tensor=2", f"models.0.path={MODEL}").start()
        wait_for("the refusal", lambda: "compute.tensor: 2 ranks in a stage: its 9 heads share 3 KV heads, which do not divide by 2"
                 in a.log())

    @unittest.skipUnless(MODEL and os.environ.get("THAW_TEST_LONG"), "THAW_TEST_MODEL and THAW_TEST_LONG are not set")
    @unittest.skipIf(netns.why_not(), netns.why_not())
    def test_spare_parts_of_the_real_model(self):
        """SmolLM2 with 3 parts over 4 hosts, one of which computes nothing: each keeps the parts that it would have after a loss. Then
        one with a part dies, and its part goes on elsewhere without a byte being moved, with the same tokens."""
        hosts = netns.Hosts(4)
        self.addCleanup(hosts.close)
        c = self.cluster("both", hosts)
        a = c.start(4, "compute.backend=cpu", "memory.kv=32MiB", "memory.weights=64MiB", "store.replicas=2", model=MODEL,
                    coordinator=["compute.tensor=3"])
        self.at_work(c, 3)
        want = a.generate("The capital of France is", 24)

        def spares():
            return set(re.findall(r"node (\w+) has (\d+) of \2 layers .*event=spares_stored", a.log()))
        idle = next(iter(set("abcd") - c.working()))
        at = next(i for i in (1, 2, 3) if "abcd"[i] != idle)
        lost = c.nodes[at]
        wait_for("spare parts", lambda: len(spares()) == 3)
        left = [d for d in c.nodes if d is not lost]
        files = {f: os.stat(f).st_mtime_ns for d in left for f in glob.glob(d.path("store/*/*.tp*"))}
        self.assertIn(idle, {n for n, _ in spares()})
        pulls = sum(d.log().count("event=model_pulled") for d in left)
        lost.process.kill()
        wait_for("the others at work", lambda: c.working() == set("abcd") - {"abcd"[at]})
        a.wait_ready()
        self.assertEqual(a.generate("The capital of France is", 24), want)
        self.assertEqual(files, {f: os.stat(f).st_mtime_ns for d in left for f in glob.glob(d.path("store/*/*.tp*"))})
        self.assertEqual(sum(d.log().count("event=model_pulled") for d in left), pulls)
        self.assertNotIn("event=fewer_parts", a.log())

    def test_workers_that_go_and_come(self):
        """In 8 streams, no request lost, no token changed: kill -9 of a rank, of a worker's thawd, SIGTERM of it, which hands its layers
        over first; each time it comes back and is used."""
        c = self.cluster()
        a = c.start(2)
        b = c.nodes[1]

        def both():
            return c.working() == {"a", "b"}
        epoch = self.epoch(a)
        ranks = b.ranks()
        self.unharmed(a, lambda: os.kill(ranks[0], signal.SIGKILL), lambda: self.epoch(a) > epoch and both())
        self.unharmed(a, b.process.kill, lambda: c.working() == {"a"})
        self.assertIn("event=node_lost", a.log())
        b.process.wait()
        for _ in range(3):
            self.unharmed(a, lambda: c.run(b), both)
            before = len(a.log())
            self.unharmed(a, b.stop, lambda: c.working() == {"a"})
            since = a.log()[before:]
            self.assertIn("node b stops: its work goes to other nodes", since)
            lost = re.findall("event=(?:node|rank)_lost", since)
            if not lost:
                break  # else perhaps the machine kept a node from beating for two seconds
        self.assertEqual(lost, [])

    def epoch(self, a):
        return json.loads(a.ctl("nodes").stdout)["epoch"]

    def test_nobody_is_left(self):
        """The only worker is killed: UNAVAILABLE with the reason; it is back: served again, and nothing is packed anew."""
        c = self.cluster("coordinator")
        a = c.start(1)
        b = c.nodes[1]
        want = a.generate("some words", 10)
        b.process.kill()
        b.process.wait()
        wait_for("the event", lambda: "event=fleet_down" in a.log())
        p = a.ctl("generate", "x", "-n", "1", check=False)
        self.assertNotEqual(p.returncode, 0)
        self.assertIn("b is lost", p.stderr)
        before = {f: os.stat(f).st_mtime_ns for f in glob.glob(b.path("store/*/layer-*"))}
        self.assertTrue(before)
        c.run(b)
        a.wait_ready()
        self.assertEqual(a.generate("some words", 10), want)
        self.assertEqual(before, {f: os.stat(f).st_mtime_ns for f in glob.glob(b.path("store/*/layer-*"))})

    def test_coordinator_restarts(self):
        """kill -9 of the coordinator: no rank computes on; a new one finds plan and stores again, with a higher epoch."""
        c = self.cluster()
        a = c.start(2)
        b = c.nodes[1]
        want = a.generate("some words", 10)
        epoch = json.loads(a.ctl("nodes").stdout)["epoch"]
        files = glob.glob(a.path("store/*/layer-*")) + glob.glob(b.path("store/*/layer-*"))
        before = {f: os.stat(f).st_mtime_ns for f in files}
        a.process.kill()
        a.process.wait()
        wait_for("the end of the rank", lambda: not b.ranks())
        a.start().wait_ready()
        wait_for("both at work", lambda: c.working() == {"a", "b"})
        self.assertEqual(a.generate("some words", 10), want)
        self.assertGreater(json.loads(a.ctl("nodes").stdout)["epoch"], epoch)
        self.assertEqual(before, {f: os.stat(f).st_mtime_ns for f in files})

    def test_drain_of_a_node(self):
        """drain moves a node's work away while streams run; undrain lets it have some again."""
        c = self.cluster()
        a = c.start(2)
        self.unharmed(a, lambda: a.ctl("drain", "b"), lambda: c.working() == {"a"})
        self.assertTrue(c.shown()["b"]["drained"])
        p = a.ctl("drain", "a", check=False)
        self.assertNotEqual(p.returncode, 0)
        self.assertIn("only one left", p.stderr)
        self.assertEqual(a.ctl("drain", "zebra", check=False).returncode, 4)
        self.unharmed(a, lambda: a.ctl("undrain", "b"), lambda: c.working() == {"a", "b"})

    def all_layers(self, c):
        """Each node has all of them, and has said so: it writes nothing more."""
        said = re.findall(r"node (\w+) has \d+ of \d+ layers .*event=spares_stored", c.nodes[0].log())
        return len(set(said)) == 3 and all(len(glob.glob(d.path("store/*/layer-*.tp0of1"))) == 8 for d in c.nodes)

    @unittest.skipIf(netns.why_not(), netns.why_not())
    def test_hosts_that_fall_silent(self):
        """Three hosts (namespaces), two of which pull their layers from the third and keep spare ones: the tokens of one; one of them is cut
        off in 8 streams, which moves no data, and then comes back."""
        hosts = netns.Hosts(3)
        self.addCleanup(hosts.close)
        c = self.cluster("both", hosts)
        a = c.start(3, "store.replicas=3", hidden=True)
        self.at_work(c, 3)
        for d in c.nodes[1:]:
            self.assertIn("event=model_pulled", d.log())
        wait_for("spare layers", lambda: self.all_layers(c))
        kept = {f: os.stat(f).st_mtime_ns for f in glob.glob(c.nodes[2].path("store/*/*.*"))}
        pulls = c.nodes[2].log().count("event=model_pulled")
        self.same_tokens(a)
        self.unharmed(a, lambda: hosts.blackhole(1), lambda: c.working() == {"a", "c"})
        self.assertRegex(a.log(), r"node b: no heartbeat for [\d.]+ s.* event=node_lost")
        self.assertEqual(kept, {f: os.stat(f).st_mtime_ns for f in glob.glob(c.nodes[2].path("store/*/*.*"))})
        self.assertEqual(c.nodes[2].log().count("event=model_pulled"), pulls)
        wait_for("the other end to notice", lambda: "it is silent" in c.nodes[1].log())
        hosts.unblackhole(1)
        wait_for("all three at work", lambda: len(c.working()) == 3)
        self.same_tokens(a)
        wait_for("the end of the rank before", lambda: len(c.nodes[2].ranks()) == 1)
        wait_for("its node to notice", lambda: self.stop_ranks(c.nodes[2]))  # nobody asks anything
        wait_for("all three at work", lambda: len(c.working()) == 3)
        self.same_tokens(a)
        a.ctl("unload", "tiny")
        # Whoever was left alone for a while, which a busy machine may do, has no spare layers: a plan had them all.
        wait_for("the end of spare layers", lambda: not any(glob.glob(d.path("store/*/spares")) for d in c.nodes))
        wait_for("word of it", lambda: any("event=spares_dropped" in d.log() for d in c.nodes))

    def stop_ranks(self, d):
        """SIGSTOP of those that are there; true: it has found one."""
        for rank in d.ranks():
            try:
                os.kill(rank, signal.SIGSTOP)
            except ProcessLookupError:
                pass
        return "event=rank_stopped" in d.log()

    def test_who_may_not_join(self):
        """One clear error each, at the right end; the cluster serves on."""
        c = self.cluster()
        a = c.start(2)
        twin = c.node("b2", certificate="b")
        p = subprocess.run(twin.command(), capture_output=True, text=True, timeout=120, check=False)
        self.assertEqual(p.returncode, 1)
        self.assertIn("is for node b, this is node b2", p.stderr)
        twin = c.node("b")
        twin.start()
        wait_for("the refusal", lambda: "a node called b is here already" in twin.log())
        other = Cluster()
        self.addCleanup(other.close)
        other.pki("node", "e", "--address", "127.0.0.1")
        stranger = c.node("d")
        stranger.sets = [s.replace(f"{c.folder}/d.", f"{other.folder}/e.").replace(f"{c.folder}/ca", f"{other.folder}/ca")
                         for s in stranger.sets] + ["cluster.node=e"]
        stranger.start()
        wait_for("the refusal", lambda: "event=not_joined" in stranger.log())
        with socket.create_connection(("127.0.0.1", c.port)) as s:
            s.sendall(os.urandom(4096))
        self.assertEqual(len(a.generate("still there", 5)), 5)
        self.assertEqual(set(c.shown()), {"a", "b"})
        self.at_work(c, 2)

    def test_node_without_the_model(self):
        """A node without a copy pulls the bytes of its layers and no others, and nothing that it has; another file is no copy."""
        c = self.cluster()
        a = c.node("a", "cluster.nodes=2", "listen.metrics=127.0.0.1:" + str(free_port()))
        c.hide_model(a.make_model())
        b = c.node("b", "listen.metrics=127.0.0.1:" + str(free_port()))
        a.start()
        b.start()
        a.wait_ready()
        self.at_work(c, 2)
        want = a.generate("some words", 10)
        self.assertEqual({r["node"] for r in json.loads(a.ctl("top", "--once").stdout)["models"][0]["ranks"]}, {"a", "b"})
        self.assertEqual(a.metric('thaw_peer_up{peer="b"}'), 1)
        pulled, size = b.metric("thaw_pulled_bytes_total"), os.path.getsize(a.path("tiny.gguf"))
        self.assertGreater(pulled, size / 4)
        self.assertLess(pulled, size / 1.2)
        self.assertIn("event=model_pulled", b.log())
        self.assertEqual(b.stop(), 0)
        wait_for("a plan without it", lambda: c.working() == {"a"})
        self.assertEqual(a.generate("some words", 10), want)
        before = {f: os.stat(f).st_mtime_ns for f in glob.glob(b.path("store/*/*.tp0of1"))}
        os.mkdir(b.path("copies"))
        with open(shutil.copy(a.path("tiny.gguf"), b.path("copies")), "r+b") as f:
            f.seek(100)
            f.write(b"another file")
        b.sets.append("store.sources=" + b.path("copies"))
        b.start()
        wait_for("work on the node", lambda: c.working() == {"a", "b"})
        self.assertEqual(a.generate("some words", 10), want)
        self.assertIn("event=model_differs", b.log())
        self.assertEqual(b.metric("thaw_pulled_bytes_total"), 0)
        self.assertEqual(before, {f: os.stat(f).st_mtime_ns for f in before})
        damaged = self.damage(b)
        self.assertNotEqual(a.ctl("generate", "some words", "-n", "10", check=False).returncode, 0)
        wait_for("the repair", lambda: "event=store_repaired" in a.log())
        self.assertRegex(a.log(), "node b packed anew: .*" + damaged)
        wait_for("work on the node", lambda: c.working() == {"a", "b"} and self.same_words(a, want))
        self.assertGreater(b.metric("thaw_pulled_bytes_total"), 0)
        self.pulls_from_a_worker(c, b, want)

    def pulls_from_a_worker(self, c, b, want):
        """b has a copy by now, and a's file was written to since it was loaded: a node that joins pulls from b."""
        a = c.nodes[0]
        self.assertEqual(b.stop(), 0)
        shutil.copy(a.path("tiny.gguf"), b.path("copies"))
        b.sets.append(f"cluster.listen=127.0.0.1:{free_port()}")
        c.run(b)
        wait_for("work on the node", lambda: c.working() == {"a", "b"})
        os.utime(a.path("tiny.gguf"))
        joins = c.node("c")
        c.run(joins)
        wait_for("work on all of them", lambda: c.working() == {"a", "b", "c"})
        self.assertIn("changed since it was loaded", joins.log())
        self.assertIn("event=model_pulled", joins.log())
        self.assertGreater(b.metric("thaw_served_bytes_total"), 0)
        self.assertEqual(a.generate("some words", 10), want)

    def same_words(self, a, want):
        """An error may come while ranks are exchanged, but no wrong token."""
        got = a.answers("some words", 10)
        self.assertIn(got, (None, want))
        return got is not None

    def damage(self, d):
        """Bits of one of its layer files, everywhere; its name."""
        path = sorted(glob.glob(d.path("store/*/layer-*")))[-1]
        flip_bits(path)
        return os.path.basename(path)

    def test_drive_of_a_node_is_full(self):
        """A node whose drive has no room says so, and the others serve."""
        c = self.cluster()
        a = c.node("a", "cluster.nodes=2")
        c.hide_model(a.make_model())
        b = c.node("b")
        os.mkdir(b.path("store"))
        if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", b.path("store")], check=False).returncode:
            self.skipTest("no tmpfs can be mounted")
        self.addCleanup(subprocess.run, ["umount", "-l", b.path("store")], check=False)
        a.start()
        b.start()
        a.wait_ready()
        self.assertEqual(c.working(), {"a"})
        self.assertIn("but its drive has", a.log())
        self.assertIn("event=node_retry", a.log())
        self.assertEqual(len(a.generate("some words", 10)), 10)


if __name__ == "__main__":
    unittest.main(verbosity=2)
