#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Two coordinators over a real etcd, and a worker, on one machine: the first is killed and the other serves; etcd hangs and what
runs goes on."""
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from cluster import Etcd, free_port  # noqa: E402
from thaw import Daemon, THAWCTL, wait_for


class Standby(unittest.TestCase):
    def setUp(self):
        self.pki = tempfile.mkdtemp(prefix="thaw-pki-")
        self.addCleanup(shutil.rmtree, self.pki)
        self.make("init", "--cluster", "lab")
        self.make("node", "etcd", "--role", "both", "--address", "127.0.0.1")
        self.etcd = Etcd(self.pki)
        self.addCleanup(self.etcd.close)
        self.ports = [free_port(), free_port()]
        join = ",".join(f"127.0.0.1:{p}" for p in self.ports)
        self.a, self.b = (self.node(name, "coordinator", f"cluster.listen=127.0.0.1:{port}", "cluster.state=etcd",
                                    f"cluster.etcd={self.etcd.endpoint}", f"cluster.etcd_tls_ca={self.pki}/ca.crt",
                                    f"cluster.etcd_tls_cert={self.pki}/{name}.crt",
                                    f"cluster.etcd_tls_key={self.pki}/{name}.key")
                          for name, port in zip("ab", self.ports))
        self.w = self.node("w", "worker", f"cluster.join={join}")
        path = self.w.make_model()
        for d in (self.a, self.b):
            d.sets.append(f"models.0.path={path}")

    def make(self, *args):
        subprocess.run([THAWCTL, "pki", *args, "--dir", self.pki], check=True, capture_output=True)

    def node(self, name, role, *sets):
        self.make("node", name, "--role", role, "--address", "127.0.0.1")
        d = Daemon(["cluster.name=lab", f"cluster.node={name}", f"cluster.role={role}", f"cluster.tls_ca={self.pki}/ca.crt",
                    f"cluster.tls_cert={self.pki}/{name}.crt", f"cluster.tls_key={self.pki}/{name}.key",
                    "memory.weights=16MiB", "memory.kv=8MiB"] + list(sets))
        self.addCleanup(d.close)
        return d

    def start(self):
        self.a.start()
        wait_for("a coordinates", lambda: "event=coordinator_active" in self.a.log())
        self.b.start()
        self.w.start()
        self.a.wait_ready()
        wait_for("b stands by", lambda: "event=coordinator_standby" in self.b.log())

    def serves(self, daemon):
        return daemon.answers("once upon", 4) is not None

    def test_the_coordinator_is_killed(self):
        """kill -9: the standby answers a request, with the same tokens, and nothing is packed anew."""
        self.start()
        want = self.a.generate("once upon", 24)
        self.assertFalse(self.serves(self.b))
        packed = self.w.log().count("event=packed")
        self.a.process.kill()
        self.a.process.wait()
        killed = time.monotonic()
        wait_for("the standby serves", lambda: self.serves(self.b))
        print(f"the standby answered {time.monotonic() - killed:.1f} s after kill -9", file=sys.stderr)
        self.assertEqual(self.b.generate("once upon", 24), want)
        self.assertEqual(self.w.log().count("event=packed"), packed)
        self.a.start()  # and stands by from now on
        wait_for("a stands by", lambda: "node b at 127.0.0.1" in self.a.log())
        self.assertEqual(self.b.generate("once upon", 24), want)

    def test_etcd_hangs(self):
        """Requests in flight and new ones are served while etcd hangs; the claim is held again when it is back."""
        self.start()
        want = self.a.generate("once upon", 150)
        got = []
        t = threading.Thread(target=lambda: got.append(self.a.generate("once upon", 150)))
        t.start()
        self.etcd.process.send_signal(signal.SIGSTOP)
        wait_for("doubt", lambda: "event=coordinator_doubt" in self.a.log())
        t.join()
        self.assertEqual(got, [want])
        self.assertEqual(self.a.generate("once upon", 24), want[:24])
        self.etcd.process.send_signal(signal.SIGCONT)
        wait_for("etcd is back", lambda: "can be reached again" in self.a.log() or self.serves(self.b))
        # On a machine that is too busy for the first to come for its claim, the standby has it.
        wait_for("one serves", lambda: want[:24] in [d.answers("once upon", 24) for d in (self.a, self.b)])


if __name__ == "__main__":
    if not shutil.which("etcd"):
        print("etcd is not installed (apt install etcd-server): no coordinator that stands by is tested")
        sys.exit(77)
    unittest.main(verbosity=2)
