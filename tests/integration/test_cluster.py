#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Clusters of two and three thawd on one machine, each with a store of its own: the tokens of one host, and what happens
when a node is killed, drained, restarted or refused."""
import glob
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import netns  # noqa: E402
from thaw import Daemon, THAWCTL, wait_for

MODEL = os.environ.get("THAW_TEST_MODEL")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Cluster:
    """A CA, and nodes that are Daemons. Node 0 coordinates."""

    def __init__(self, role="both", hosts=None):
        self.hosts = hosts  # network namespaces, one for each node
        self.folder = tempfile.mkdtemp(prefix="thaw-cl-")
        self.port = free_port()
        self.role = role
        self.nodes = []
        self.pki("init", "--cluster", "lab")

    def pki(self, *args):
        subprocess.run([THAWCTL, "pki", *args, "--dir", self.folder], check=True, capture_output=True)

    def node(self, name, *sets, certificate=None, worker=None):
        certificate = certificate or name
        place = len(self.nodes)
        own, head = [self.hosts.address(i) if self.hosts else "127.0.0.1" for i in (place, 0)]
        if not os.path.exists(f"{self.folder}/{certificate}.crt"):
            self.pki("node", certificate, "--address", own)
        worker = bool(self.nodes) if worker is None else worker
        d = Daemon(["cluster.name=lab", f"cluster.node={name}", f"cluster.tls_ca={self.folder}/ca.crt",
                    f"cluster.tls_cert={self.folder}/{certificate}.crt", f"cluster.tls_key={self.folder}/{certificate}.key",
                    "memory.weights=8MiB", "memory.kv=8MiB"]
                   + ([f"cluster.join={head}:{self.port}", "cluster.role=worker"] if worker else
                      [f"cluster.listen={head}:{self.port}", f"cluster.role={self.role}", "cluster.device_map=balanced"])
                   + list(sets))
        d.prefix = self.hosts.command(place, []) if self.hosts else []
        self.nodes.append(d)
        return d

    def start(self, count, *sets, model=None, hidden=False, coordinator=()):
        """Node a, then b and c, ... that join it; waits until the model is served over all of them."""
        a = self.node("a", f"cluster.nodes={count}", *sets, *coordinator)
        if hidden:
            self.hide_model(a.make_model())
        else:
            a.sets.append(f"models.0.path={model or a.make_model()}")
        for i in range(1, count + (self.role == "coordinator")):
            self.node("abcdefg"[i], *sets)
        for d in self.nodes:
            d.start(env={"UCX_TLS": "tcp,self"} if self.hosts else None)
        return a.wait_ready()

    def hide_model(self, path):
        """Node 0 has it, at a path that is none for the others."""
        a = self.nodes[0]
        a.prefix = a.prefix + ["env", "--chdir=" + os.path.dirname(path)]
        a.sets.append("models.0.path=/proc/self/cwd/" + os.path.basename(path))

    def shown(self):
        return {n["name"]: n for n in json.loads(self.nodes[0].ctl("nodes").stdout)["nodes"]}

    def working(self):
        return {name for name, n in self.shown().items() if any(w["phase"] == "running" for w in n.get("work", []))}

    def close(self):
        for d in self.nodes:
            d.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class Fleet(unittest.TestCase):
    def cluster(self, *args):
        c = Cluster(*args)
        self.addCleanup(c.close)
        return c

    def alone(self, *sets, model=None):
        d = Daemon(list(sets))
        self.addCleanup(d.close)
        d.sets.append(f"models.0.path={model or d.make_model()}")
        return d.start().wait_ready()

    def eight(self, daemon, tokens, meanwhile=None):
        results = [None] * 8

        def one(i):
            results[i] = daemon.generate(f"this is stream {i} of eight", tokens, "--seed", str(i), "-t", "0.8")
        threads = [threading.Thread(target=one, args=(i,)) for i in range(8)]
        for t in threads:
            t.start()
        if meanwhile:
            wait_for("eight running requests", lambda: "8 requests" in daemon.status())
            time.sleep(0.3)
            meanwhile()
        for t in threads:
            t.join()
        return results

    def test_tokens_of_one_host(self):
        """Two and three hosts, also with a coordinator that computes nothing: the tokens of one."""
        want = self.eight(self.alone("memory.weights=12MiB"), 20)
        for count, role in ((2, "both"), (3, "both"), (2, "coordinator")):
            c = self.cluster(role)
            a = c.start(count)
            self.assertEqual(len(c.working()), count)
            self.assertEqual(self.eight(a, 20), want)
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

    @unittest.skipUnless(MODEL, "THAW_TEST_MODEL is not set")
    def test_real_model(self):
        """SmolLM2 over two and three hosts: greedy tokens as on one."""
        real = ["compute.backend=cpu", "memory.weights=64MiB", "memory.kv=32MiB"]
        want = self.alone(*real, model=MODEL).generate("The capital of France is", 24)
        for count in (2, 3):
            c = self.cluster()
            a = c.start(count, *real, model=MODEL)
            self.assertEqual(len(c.working()), count)
            self.assertEqual(a.generate("The capital of France is", 24), want)
            c.close()

    @unittest.skipIf(netns.why_not(), netns.why_not())
    def test_parts_over_hosts(self):
        """Two hosts (namespaces) share every layer: the tokens of two parts on one host, also when a part dies in 8 streams; when its
        host does, no request is lost."""
        want = self.eight(self.alone("memory.weights=16MiB", "compute.tensor=2"), 30)
        hosts = netns.Hosts(2)
        self.addCleanup(hosts.close)
        c = self.cluster("both", hosts)
        a = c.start(2, coordinator=["compute.tensor=2"])
        b = c.nodes[1]
        shards = json.loads(a.ctl("placement").stdout)["placements"][0]["shards"]
        self.assertEqual([(s["stage"], s["tp_rank"], s["node"]) for s in shards], [(0, 0, "a"), (0, 1, "b")])
        self.assertIn("part 1/2", a.ctl("nodes", json_output=False).stdout)
        rank = b.ranks()[0]
        self.assertEqual(self.eight(a, 30, lambda: os.kill(rank, signal.SIGKILL)), want)
        self.assertEqual(c.working(), {"a", "b"})
        self.assertEqual([len(t) for t in self.eight(a, 30, b.process.kill)], [30] * 8)
        self.assertEqual(c.working(), {"a"})
        self.assertIn("event=fewer_parts", a.log())

    @unittest.skipUnless(MODEL and os.environ.get("THAW_TEST_LONG"), "THAW_TEST_MODEL and THAW_TEST_LONG are not set")
    @unittest.skipIf(netns.why_not(), netns.why_not())
    def test_parts_of_the_real_model(self):
        """SmolLM2 with 3 parts over 3 hosts and with 2 stages of 3 over 6: the tokens of 3 parts on one host, each time. 2 parts are refused."""
        real = ["compute.backend=cpu", "memory.kv=32MiB"]
        alone = ["memory.weights=200MiB", "memory.kv=96MiB", "compute.tensor=3"]
        want = self.alone(*real, *alone, model=MODEL).generate("The capital of France is", 24)
        for count in (3, 6):
            hosts = netns.Hosts(count)
            self.addCleanup(hosts.close)
            c = self.cluster("both", hosts)
            a = c.start(count, *real, "memory.weights=64MiB", model=MODEL, coordinator=["compute.tensor=3"])
            self.assertEqual(len(c.working()), count)
            for _ in range(5):
                self.assertEqual(a.generate("The capital of France is", 24), want)
            c.close()
        c = self.cluster()
        a = c.node("a", "compute.tensor=2", f"models.0.path={MODEL}").start()
        wait_for("the refusal", lambda: "compute.tensor: 2 ranks in a stage: its 9 heads share 3 KV heads, which do not divide by 2"
                 in a.log())

    def test_kill_of_a_worker(self):
        """kill -9 of a worker's thawd, and of a rank, in 8 streams: no request lost, no token changed; it comes back and is used."""
        want = self.eight(self.alone("memory.weights=12MiB"), 60)
        c = self.cluster()
        a = c.start(2)
        b = c.nodes[1]
        ranks = b.ranks()
        self.assertEqual(self.eight(a, 60, lambda: os.kill(ranks[0], signal.SIGKILL)), want)
        self.assertEqual(c.working(), {"a", "b"})
        self.assertEqual(self.eight(a, 60, b.process.kill), want)
        self.assertEqual(c.working(), {"a"})
        self.assertIn("event=node_lost", a.log())
        b.process.wait()
        b.told.clear()
        b.start()
        wait_for("the node in a new plan", lambda: c.working() == {"a", "b"})
        self.assertEqual(self.eight(a, 60), want)

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
        b.told.clear()
        b.start()
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
        wait_for("the end of the rank", lambda: not b.ranks(), 10)
        a.told.clear()
        a.start().wait_ready()
        self.assertEqual(c.working(), {"a", "b"})
        self.assertEqual(a.generate("some words", 10), want)
        self.assertGreater(json.loads(a.ctl("nodes").stdout)["epoch"], epoch)
        after = glob.glob(a.path("store/*/layer-*")) + glob.glob(b.path("store/*/layer-*"))
        self.assertEqual(before, {f: os.stat(f).st_mtime_ns for f in after})

    def test_drain_of_a_node(self):
        """drain moves a node's work away while streams run; undrain lets it have some again."""
        want = self.eight(self.alone("memory.weights=12MiB"), 60)
        c = self.cluster()
        a = c.start(2)
        self.assertEqual(self.eight(a, 60, lambda: a.ctl("drain", "b")), want)
        self.assertEqual(c.working(), {"a"})
        self.assertTrue(c.shown()["b"]["drained"])
        p = a.ctl("drain", "a", check=False)
        self.assertNotEqual(p.returncode, 0)
        self.assertIn("only one left", p.stderr)
        self.assertEqual(a.ctl("drain", "zebra", check=False).returncode, 4)
        a.ctl("undrain", "b")
        wait_for("work on the node", lambda: c.working() == {"a", "b"})
        self.assertEqual(self.eight(a, 60), want)

    @unittest.skipIf(netns.why_not(), netns.why_not())
    def test_hosts_that_fall_silent(self):
        """Three hosts (namespaces), two of which pull their layers from the third and keep spare ones: the tokens of one; one of them is cut
        off in 8 streams, which moves no data, and then comes back."""
        want = self.eight(self.alone("memory.weights=12MiB"), 60)
        hosts = netns.Hosts(3)
        self.addCleanup(hosts.close)
        c = self.cluster("both", hosts)
        a = c.start(3, "store.replicas=3", hidden=True)
        self.assertEqual(len(c.working()), 3)
        for d in c.nodes[1:]:
            self.assertIn("event=model_pulled", d.log())
        wait_for("spare layers", lambda: a.log().count("event=spares_stored") == 3)
        kept = {f: os.stat(f).st_mtime_ns for f in glob.glob(c.nodes[2].path("store/*/*"))}
        self.assertEqual(self.eight(a, 60), want)
        self.assertEqual(self.eight(a, 60, lambda: hosts.blackhole(1)), want)
        self.assertEqual(c.working(), {"a", "c"})
        self.assertIn("no heartbeat for 2", a.log())
        self.assertEqual(kept, {f: os.stat(f).st_mtime_ns for f in glob.glob(c.nodes[2].path("store/*/*"))})
        self.assertEqual(c.nodes[2].log().count("event=model_pulled"), 1)
        wait_for("the other end to notice", lambda: "it is silent" in c.nodes[1].log(), 10)
        hosts.unblackhole(1)
        wait_for("all three at work", lambda: len(c.working()) == 3)
        self.assertEqual(self.eight(a, 60), want)

    def test_who_may_not_join(self):
        """One clear error each, at the right end; the cluster serves on."""
        c = self.cluster()
        a = c.start(2)
        twin = c.node("b2", certificate="b")
        p = subprocess.run(twin.command(), capture_output=True, text=True, timeout=30, check=False)
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
        self.assertEqual(c.working(), {"a", "b"})

    def test_node_without_the_model(self):
        """A node without a copy pulls the bytes of its layers and no others, and nothing that it has; another file is no copy."""
        c = self.cluster()
        a = c.node("a", "cluster.nodes=2")
        c.hide_model(a.make_model())
        b = c.node("b", "listen.metrics=127.0.0.1:" + str(free_port()))
        a.start()
        b.start()
        a.wait_ready()
        self.assertEqual(c.working(), {"a", "b"})
        want = a.generate("some words", 10)
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
        b.told.clear()
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
        wait_for("work on the node", lambda: c.working() == {"a", "b"})
        self.assertEqual(a.generate("some words", 10), want)
        self.assertGreater(b.metric("thaw_pulled_bytes_total"), 0)

    def damage(self, d):
        """Bits of one of its layer files, everywhere; its name."""
        path = sorted(glob.glob(d.path("store/*/layer-*")))[-1]
        with open(path, "r+b") as f:
            for at in range(4096 + 1234, os.path.getsize(path) - 65536, 65536):
                f.seek(at)
                byte = f.read(1)
                f.seek(at)
                f.write(bytes([byte[0] ^ 0x40]))
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
