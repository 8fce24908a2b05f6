# SPDX-License-Identifier: Apache-2.0
"""thawd and its rank under the system call filter of deploy/kubernetes, and under the same without io_uring."""
import json
import os
import subprocess
import unittest

from thaw import Daemon

EXEC = os.environ["THAW_SECCOMP_EXEC"]
PROFILE = os.environ["THAW_SECCOMP_PROFILE"]
IO_URING = ("io_uring_setup", "io_uring_enter", "io_uring_register")


def under(*without):
    return [EXEC, PROFILE] + [w for name in without for w in ("--without", name)] + ["--"]


class SeccompTest(unittest.TestCase):
    def loaded(self, prefix=()):
        d = Daemon(["memory.weights=8MiB"], prefix=prefix)
        self.addCleanup(d.close)
        d.sets.append(f"models.0.path={d.make_model()}")
        return d.start().wait_ready()

    def engine(self, d):
        return json.loads(d.ctl("placement").stdout)["placements"][0]["shards"][0]["engine"]

    def status(self, pid, name):
        with open(f"/proc/{pid}/status", encoding="utf-8") as f:
            return dict(line.rstrip("\n").split(":\t", 1) for line in f if ":\t" in line)[name]

    def test_profile(self):
        """Under the profile: io_uring reads, a killed rank is started again, the tokens are those without a filter."""
        d = self.loaded()
        want = d.generate("the same words", 20)
        self.assertEqual(d.stop(), 0)
        d = self.loaded(under())
        for pid in [d.process.pid] + d.ranks():
            self.assertEqual(self.status(pid, "Seccomp"), "2")
            self.assertEqual(self.status(pid, "NoNewPrivs"), "1")
        self.assertRegex(self.engine(d), "^uring")
        self.assertNotIn("io_uring_refused", d.log())
        self.assertEqual(d.generate("the same words", 20), want)
        os.kill(d.ranks()[0], 9)
        self.assertEqual(d.generate("the same words", 20), want)
        self.assertEqual(d.stop(), 0)

    def test_without_io_uring(self):
        """As a runtime's own profile has it: threads read, with the same tokens, a warning and a metric."""
        d = self.loaded(under())
        want = d.generate("the same words", 20)
        self.assertEqual(d.stop(), 0)
        d = self.loaded(under(*IO_URING))
        self.assertRegex(self.engine(d), "^sync")
        self.assertEqual(d.generate("the same words", 20), want)
        self.assertRegex(d.log(), r"warning.*allow io_uring_setup, io_uring_enter and io_uring_register.*event=io_uring_refused")
        self.assertRegex(d.log(), "seccomp")
        self.assertEqual(d.stop(), 0)

    def test_what_is_refused(self):
        """The filter is one: namespaces, mounts, tracing, kernel modules, keys and packet sockets are out of reach."""
        script = """
import ctypes, errno, socket
libc = ctypes.CDLL(None, use_errno=True)
for name, number in (("unshare", 272), ("mount", 165), ("ptrace", 101), ("init_module", 175), ("add_key", 248),
                     ("bpf", 321), ("userfaultfd", 323), ("perf_event_open", 298), ("clone newns", 56)):
    r = libc.syscall(number, 0x10020000, 0, 0, 0, 0)
    assert r == -1 and ctypes.get_errno() == errno.EPERM, (name, r, ctypes.get_errno())
assert libc.syscall(435, 0, 0) == -1 and ctypes.get_errno() == errno.ENOSYS
for family in (socket.AF_PACKET, socket.AF_VSOCK):
    try:
        socket.socket(family, socket.SOCK_DGRAM)
    except PermissionError:
        continue
    raise AssertionError(family)
"""
        if os.uname().machine != "x86_64":
            self.skipTest("numbers of x86-64")
        p = subprocess.run(under() + ["/usr/bin/python3", "-c", script], capture_output=True, text=True, timeout=120, check=False)
        self.assertEqual(p.returncode, 0, p.stderr)

    def test_links(self):
        """The links between ranks, UCX among them, have what they need: their unit tests, under the profile."""
        test = os.path.join(os.environ["THAW_BUILD"], "tests", "unit", "link", "test_link")
        if not os.path.exists(test):
            self.skipTest(f"{test} is not built")
        p = subprocess.run(under() + [test], capture_output=True, text=True, timeout=600, check=False)
        self.assertEqual(p.returncode, 0, (p.stdout + p.stderr)[-3000:])

    @unittest.skipUnless(os.geteuid() == 0, "needs root, to become another user")
    def test_as_in_a_container(self):
        """Another user, no capabilities, 64 KiB of locked memory, the profile: registered buffers are refused, and it works."""
        other = 10151
        user = ["/usr/bin/prlimit", "--memlock=65536", "/usr/bin/setpriv", f"--reuid={other}", f"--regid={other}", "--clear-groups",
                "--bounding-set=-all", "--inh-caps=-all"]
        d = Daemon(["memory.weights=8MiB"], prefix=user + under())
        self.addCleanup(d.close)
        d.sets.append(f"models.0.path={d.make_model()}")
        for name in ("", "conf.d"):
            os.chown(d.path(name), other, other)
        os.chmod(d.path("tiny.gguf"), 0o644)
        d.start().wait_ready()
        for pid in [d.process.pid] + d.ranks():
            self.assertEqual(self.status(pid, "CapEff"), "0" * 16)
        self.assertRegex(self.engine(d), "^uring")
        self.assertEqual(len(d.generate("the same words", 20)), 20)
        self.assertEqual(d.stop(), 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
