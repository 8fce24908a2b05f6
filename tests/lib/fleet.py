# SPDX-License-Identifier: Apache-2.0
"""A fleet for benchmarks: thawd on N hosts that are network namespaces, each with a store of its own and, where it is wanted, a
drive of its own rate, CPUs of its own and a memory cap (cgroups, version 1 or 2). Needs root; why_not() says what is missing.

    with fleet.Fleet(2, model, drives=[200e6, 200e6], sets=["memory.weights=64MiB"]) as f:
        f.pack()                    all layers on all hosts, at full speed; they share the files
        f.start()                   the drives are throttled from here on, and each host measures itself alone
        f.placement()               what the planner says: the JSON of `thawctl placement`
        f.bench(8, 16)              the JSON of `thawctl bench`
        f.stop()                    and start again with other `drives`, `host_sets`, ...: the stores stay

A store lies in `folder` (default: a new one in $THAW_BENCH_DATA or /var/tmp), which must be on the drive that is throttled: tmpfs
has none. THAW_BUILD names the build.
"""
import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "integration"))
import netns  # noqa: E402
from thaw import Daemon, THAWCTL, wait_for  # noqa: E402

CGROUP = "/sys/fs/cgroup"
PORT = 7400


def why_not():
    """What keeps a throttled fleet from being started here, or None."""
    why = netns.why_not()
    if why:
        return why
    cage = Cage(f"thaw-try.{os.getpid()}")
    try:
        cage.create(rate=10**9, path="/var/tmp")
        return None
    except OSError as e:
        return f"no drive can be throttled: {e}"
    finally:
        cage.close()


def drive_of(path):
    """MAJOR:MINOR of the whole drive that holds a path."""
    dev = os.stat(path).st_dev
    number = f"{os.major(dev)}:{os.minor(dev)}"
    parent = os.path.realpath(f"/sys/dev/block/{number}/..")
    if os.path.exists(f"/sys/dev/block/{number}/partition"):
        with open(parent + "/dev", encoding="utf-8") as f:
            return f.read().strip()
    return number


class Cage:
    """The cgroups of one host."""

    def __init__(self, name):
        self.name, self.made, self.capped = name, [], False
        self.unified = os.path.exists(f"{CGROUP}/cgroup.controllers")

    def _make(self, controller):
        path = f"{CGROUP}/{self.name}" if self.unified else f"{CGROUP}/{controller}/{self.name}"
        if path in self.made:
            return path
        if self.unified:
            for c in ("io", "cpuset", "memory"):
                with open(f"{CGROUP}/cgroup.subtree_control", "w", encoding="utf-8") as f:
                    f.write("+" + c)
        os.mkdir(path)
        self.made.append(path)
        return path

    def _write(self, controller, name, value):
        with open(os.path.join(self._make(controller), name), "w", encoding="utf-8") as f:
            f.write(value)

    def create(self, rate=None, path=None, cpus=None, memory=None):
        if rate and self.unified:
            self._write("io", "io.max", f"{drive_of(path)} rbps={int(rate)}")
        elif rate:
            self._write("blkio", "blkio.throttle.read_bps_device", f"{drive_of(path)} {int(rate)}")
        if cpus:
            if not self.unified:
                with open(f"{CGROUP}/cpuset/cpuset.mems", encoding="utf-8") as f:
                    self._write("cpuset", "cpuset.mems", f.read())
            self._write("cpuset", "cpuset.cpus", cpus)
        self.capped = bool(memory)
        if memory:
            self._write("memory", "memory.max" if self.unified else "memory.limit_in_bytes", str(int(memory)))

    def prefix(self):
        """A command that runs what follows it in the cgroups."""
        if not self.made:
            return []
        enter = "".join(f"echo $$ >{p}/cgroup.procs && " for p in self.made)
        return ["sh", "-c", enter + 'exec "$@"', "sh"]

    def inside(self):
        """The same inside a namespace, where /sys is another one: the memory cap can be seen there."""
        if self.unified:
            mount = "mount -t cgroup2 none /sys/fs/cgroup"
        else:
            mount = ("mount -t tmpfs none /sys/fs/cgroup && mkdir /sys/fs/cgroup/memory && "
                     "mount -t cgroup -o memory none /sys/fs/cgroup/memory")
        return ["sh", "-c", mount + ' && exec "$@"', "sh"] if self.capped else []

    def close(self):
        def gone(path):
            try:
                os.rmdir(path)
            except FileNotFoundError:
                pass
            except OSError:
                return False
            return True
        for p in self.made:
            wait_for(f"the end of {p}", lambda p=p: gone(p), 20)
        self.made = []


class Fleet:
    """Node a coordinates and computes; b, c, ... join it. Lists have one value for each host; None: no limit."""

    def __init__(self, count, model, folder=None, drives=None, cpus=None, memory=None, sets=(), host_sets=None,
                 device_map="balanced"):
        data = os.environ.get("THAW_BENCH_DATA", "/var/tmp")
        os.makedirs(data, exist_ok=True)
        self.own = folder is None
        self.folder = folder or tempfile.mkdtemp(prefix="thaw-fleet-", dir=data)
        self.count, self.model, self.sets, self.device_map = count, model, list(sets), device_map
        self.drives, self.cpus, self.memory = drives, cpus, memory
        self.host_sets = host_sets  # of each host, beside sets
        self.nodes, self.cages = [], []
        self.hosts = netns.Hosts(count)
        try:
            if not os.path.exists(self.folder + "/ca.crt"):
                self._pki("init", "--cluster", "bench")
        except BaseException:
            self.close()
            raise

    def _pki(self, *args):
        subprocess.run([THAWCTL, "pki", *args, "--dir", self.folder], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def name(self, host):
        return "abcdefghijklmnop"[host]

    def path(self, host):
        p = os.path.join(self.folder, self.name(host))
        os.makedirs(p, exist_ok=True)
        return p

    def _daemon(self, host, sets):
        # A socket's path must be short: it is not in the data folder.
        return Daemon(["compute.backend=cpu", f"store.path={self.path(host)}/store", *sets])

    def pack(self, parts=1):
        """All layers of the model in the store of every host, in so many parts."""
        packed = os.path.join(self.folder, "packed")
        done = os.path.join(packed, f"parts-{parts}")
        if not os.path.exists(done):
            d = Daemon(["compute.backend=cpu", f"store.path={packed}", f"models.0.path={self.model}", f"compute.tensor={parts}"])
            try:
                d.start().wait_ready(600)
                d.stop()
            finally:
                d.close()
            with open(done, "w", encoding="utf-8"):
                pass
        for host in range(self.count):
            for f in glob.glob(packed + "/*/*"):
                to = os.path.join(self.path(host), "store", os.path.relpath(f, packed))
                os.makedirs(os.path.dirname(to), exist_ok=True)
                if os.path.isfile(f) and not os.path.exists(to):
                    os.link(f, to)
        return self

    def _node(self, host):
        name = self.name(host)
        if not os.path.exists(f"{self.folder}/{name}.crt"):
            self._pki("node", name, "--address", self.hosts.address(host))
        head = f"{self.hosts.address(0)}:{PORT}"
        sets = ["cluster.name=bench", f"cluster.node={name}", f"cluster.tls_ca={self.folder}/ca.crt",
                f"cluster.tls_cert={self.folder}/{name}.crt", f"cluster.tls_key={self.folder}/{name}.key"]
        if host:
            sets += [f"cluster.join={head}", "cluster.role=worker"]
        else:
            sets += [f"cluster.listen={head}", "cluster.role=both", f"cluster.device_map={self.device_map}",
                     f"cluster.nodes={self.count}", f"models.0.path={self.model}"]
        d = self._daemon(host, sets + self.sets + (list(self.host_sets[host]) if self.host_sets else []))

        def of(values):
            return values[host] if values else None
        cage = Cage(f"thaw-{name}.{os.getpid()}")
        self.cages.append(cage)
        cage.create(of(self.drives), self.path(host), of(self.cpus), of(self.memory))
        d.prefix = cage.prefix() + self.hosts.command(host, cage.inside())
        self.nodes.append(d)
        return d

    def start(self, seconds=120, measure=True):
        """All hosts, one after the other: what a host measures of itself, it measures alone. Waits until the model is served."""
        for host in range(self.count):
            probe = os.path.join(self.path(host), "store", "probe.json")
            if measure and os.path.exists(probe):
                os.unlink(probe)
            d = self._node(host).start(env={"UCX_TLS": "tcp,self"})
            wait_for(f"what host {host} measures", lambda d=d, p=probe: os.path.exists(p) or d.process.poll() is not None)
        self.nodes[0].wait_ready(seconds)
        return self

    def ctl(self, *args, timeout=600):
        return json.loads(self.nodes[0].ctl(*args, timeout=timeout).stdout)

    def placement(self):
        return self.ctl("placement")["placements"][0]

    def shown(self):
        return {n["name"]: n for n in self.ctl("nodes")["nodes"]}

    def bench(self, streams, tokens, prompt=4):
        return self.ctl("bench", "--streams", str(streams), "--max-tokens", str(tokens), "--prompt-tokens", str(prompt))

    def stop(self):
        for d in reversed(self.nodes):
            if d.process and d.process.poll() is None:
                d.process.terminate()
        for d in reversed(self.nodes):
            if d.process:
                d.process.wait(60)
            d.close()
        self.nodes = []
        for c in self.cages:
            c.close()
        self.cages = []

    def close(self):
        for d in self.nodes:
            d.close()
        self.nodes = []
        self.hosts.close()
        for c in self.cages:
            c.close()
        self.cages = []
        if self.own:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
