# SPDX-License-Identifier: Apache-2.0
"""A cluster of thawd for tests: a CA, and nodes that each have a folder of their own; on one machine, or on hosts of netns.

THAW_BUILD names the build. What a node says is in its log: lines with a time of day in UTC.
"""
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

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "integration"))
from thaw import Daemon, THAWCTL, wait_for  # noqa: E402


CLAIMS = []  # until this process ends


def free_port():
    """A port that no other test gets, and the kernel gives to no connection: as tests/lib/port.h."""
    first, count = 12000, 18000
    for i in range(count):
        port = first + (os.getpid() * 37 + i) % count
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0thaw-test-port-{port}")
            with socket.socket() as s:
                s.bind(("127.0.0.1", port))
        except OSError:
            claim.close()
            continue
        CLAIMS.append(claim)
        return port
    raise OSError("no port is free")


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

    def node(self, name, *sets, certificate=None, worker=None, place=None):
        """A node that is not started yet; place: its host, if not the next one."""
        certificate = certificate or name
        place = len(self.nodes) if place is None else place
        own, head = [self.hosts.address(i) if self.hosts else "127.0.0.1" for i in (place, 0)]
        if not os.path.exists(f"{self.folder}/{certificate}.crt"):
            self.pki("node", certificate, "--address", own)
        worker = bool(self.nodes) if worker is None else worker
        d = Daemon(["cluster.name=lab", f"cluster.node={name}", f"cluster.tls_ca={self.folder}/ca.crt",
                    f"cluster.tls_cert={self.folder}/{certificate}.crt", f"cluster.tls_key={self.folder}/{certificate}.key",
                    "memory.weights=8MiB", "memory.kv=8MiB", "compute.backend=cpu", "compute.threads=1"]
                   + ([f"cluster.join={head}:{self.port}", "cluster.role=worker"] if worker else
                      [f"cluster.listen={head}:{self.port}", f"cluster.role={self.role}", "cluster.device_map=balanced"])
                   + list(sets))
        d.prefix = self.hosts.command(place, []) if self.hosts else []
        d.place = place
        self.nodes.append(d)
        return d

    def start(self, count, *sets, model=None, hidden=False, coordinator=(), racks=()):
        """Node a, then b and c, ... that join it; waits until the model is served over all of them. racks: of each node."""
        a = self.node("a", f"cluster.nodes={count}", *sets, *coordinator)
        if hidden:
            self.hide_model(a.make_model())
        else:
            a.sets.append(f"models.0.path={model or a.make_model()}")
        for i in range(1, count + (self.role == "coordinator")):
            self.node("abcdefgh"[i], *sets)
        for d, rack in zip(self.nodes, racks):
            d.sets.append(f"cluster.rack={rack}")
        for d in self.nodes:
            self.run(d)
        return a.wait_ready()

    def run(self, daemon):
        """Starts a node, for the first time or again."""
        return daemon.start(env={"UCX_TLS": "tcp,self"} if self.hosts else None)

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


class Etcd:
    """One member, which wants certificates of the cluster's CA from its clients; on this machine, or on a host of netns."""

    def __init__(self, pki, hosts=None, place=0):
        self.folder = tempfile.mkdtemp(prefix="thaw-etcd-")
        self.endpoint = f"{hosts.address(place) if hosts else '127.0.0.1'}:{free_port()}"
        peer = f"http://127.0.0.1:{free_port()}"
        command = ["etcd", "--data-dir", self.folder, "--listen-client-urls", f"https://{self.endpoint}",
                   "--advertise-client-urls", f"https://{self.endpoint}", "--listen-peer-urls", peer,
                   "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}", "--cert-file", pki + "/etcd.crt",
                   "--key-file", pki + "/etcd.key", "--trusted-ca-file", pki + "/ca.crt", "--client-cert-auth"]
        with open(self.folder + ".log", "wb") as log:
            self.process = subprocess.Popen(hosts.command(place, command) if hosts else command, stdout=log, stderr=log)

    def close(self):
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
        os.unlink(self.folder + ".log")


class Stream(threading.Thread):
    """One request after the other, all of them the same, until stop(); what comes back is compared token by token."""

    def __init__(self, daemon, number, want, tokens):
        super().__init__(daemon=True)
        self.server, self.number, self.want, self.tokens = daemon, number, want, tokens
        self.ends, self.process = False, None
        self.times = []  # of every token, time.time()
        self.changed = self.requests = 0
        self.lost = []  # (when, what thawctl said)

    def command(self):
        prompt = f"1 {300 + self.number} 500 700 {900 + self.number}"
        return ["generate", "--token-ids", prompt, "-n", str(self.tokens), "--ignore-eos", "--seed", str(self.number), "-t", "0.8"]

    def run(self):
        while not self.ends:
            self.request()

    def request(self):
        got, rest = [], b""
        self.process = self.server.popen(*self.command(), text=False)
        self.requests += 1
        if self.ends:
            self.process.terminate()
        while data := os.read(self.process.stdout.fileno(), 65536):
            words = (rest + data).split(b" ")
            rest = words.pop()
            now = time.time()
            for w in words:
                got.append(int(w))
                self.times.append(now)
        if rest.strip():
            got.append(int(rest))
            self.times.append(time.time())
        said = self.process.stderr.read().decode(errors="replace").strip()
        code = self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()
        if code and not self.ends:
            self.lost.append((time.time(), said))
            time.sleep(0.05)
        if self.want is not None:
            self.changed += sum(a != b for a, b in zip(got, self.want)) + max(0, len(got) - len(self.want))
            self.changed += not code and len(got) < len(self.want)
        return got

    def stop(self):
        """What it has not got yet, it is not waited for."""
        self.ends = True
        if self.process:
            self.process.terminate()

    def pause(self, since):
        """The longest time without a token after `since`."""
        after = [t for t in self.times if t > since]
        before = [t for t in self.times if t <= since]
        edges = before[-1:] + after + [time.time()]
        return max((b - a for a, b in zip(edges, edges[1:])), default=0.0)


class Streams:
    """A number of streams that run at the same time, with what they should give: from Streams.once of one host."""

    def __init__(self, daemon, want, tokens):
        self.all = [Stream(daemon, i, w, tokens) for i, w in enumerate(want)]
        for s in self.all:
            s.start()

    @staticmethod
    def once(daemon, tokens, count=8):
        """The tokens of so many requests at a time."""
        results = [None] * count

        def one(i):
            results[i] = Stream(daemon, i, None, tokens).request()
        threads = [threading.Thread(target=one, args=(i,)) for i in range(count)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        return results

    def go_on(self, tokens=3, seconds=120):
        """Waits until each has got that many more."""
        marks = [len(s.times) for s in self.all]
        wait_for("tokens of all streams", lambda: all(len(s.times) >= m + tokens for s, m in zip(self.all, marks)), seconds)
        return self

    def stop(self):
        for s in self.all:
            s.stop()
        for s in self.all:
            s.join(120)

    def lost(self):
        return [said for s in self.all for _, said in s.lost]

    def changed(self):
        return sum(s.changed for s in self.all)

    def pause(self, since):
        return max(s.pause(since) for s in self.all)
