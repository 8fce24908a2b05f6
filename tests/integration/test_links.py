# SPDX-License-Identifier: Apache-2.0
"""Links between hosts (namespaces): what carries them, and when a loss is noticed: kill, stop, blackhole."""
import os
import signal
import subprocess
import sys
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import netns  # noqa: E402

PEER = os.environ["THAW_LINK_PEER"]
# The magic number of UCX's handshake, then a length that would end its process.
KNOCK = r"""
import socket, sys
s = socket.socket()
s.settimeout(0.5)
try:
    s.connect((sys.argv[1], int(sys.argv[2])))
    s.sendall(bytes.fromhex("78563412bebafeca") + b"\xff" * 2000)
    print("open")
except TimeoutError:
    print("silent")
"""


class Peers:
    def __init__(self, hosts, mode):
        self.hosts = hosts
        env = dict(os.environ, UCX_TLS="tcp,self")
        addresses = [hosts.address(i) for i in range(hosts.count)]
        self.all = [subprocess.Popen(hosts.command(i, [PEER, "7300", str(i), mode, *addresses]), env=env, stdout=subprocess.PIPE)
                    for i in range(hosts.count)]
        self.head = [self.until(i, "up") for i in range(hosts.count)]
        if mode == "stream":
            for i in range(hosts.count):
                self.until(i, "round")

    def until(self, i, word):
        """The lines up to the one that begins with the word."""
        lines = []
        while not lines or not lines[-1].startswith(word):
            line = self.all[i].stdout.readline().decode()
            if not line:
                raise AssertionError(f"member {i} ended: {lines}")
            lines.append(line)
        return lines

    def lost_after(self, i, start):
        return int(self.until(i, "lost")[-1].split()[1]) / 1e9 - start

    def finish(self):
        for p in self.all:
            p.kill()
            p.wait()
            p.stdout.close()


class Links(unittest.TestCase):
    def peers(self, hosts, mode):
        p = Peers(hosts, mode)
        self.addCleanup(p.finish)
        return p

    def noticed(self, what, seconds):
        """The figures are for people. TCP itself would give up after minutes."""
        print(f"{what}: " + " ".join(f"{s:.3f}" for s in seconds) + " s", file=sys.stderr)
        self.assertLess(max(seconds), 60)

    def test_tcp_carries_them_and_strangers_stay_out(self):
        with netns.Hosts(4) as hosts:
            hosts.count = 3  # the fourth is no member
            peers = self.peers(hosts, "idle")
            for head in peers.head:
                lanes = [line for line in head if "lane[" in line]
                self.assertEqual(len(lanes), 2)
                for line in lanes:
                    self.assertIn("tcp/eth0", line)
            hosts.count = 4
            port = [line for line in peers.head[0] if line.startswith("port")][0].split()[1]
            for stranger in (3, 1):
                out = hosts.run(stranger, [sys.executable, "-c", KNOCK, hosts.address(0), port], stdout=subprocess.PIPE).stdout
                self.assertEqual(out, b"silent\n")
            self.assertEqual([p.poll() for p in peers.all], [None] * 3)

    def test_kill(self):
        for mode in ("idle", "stream"):
            with netns.Hosts(3) as hosts:
                peers = self.peers(hosts, mode)
                start = time.monotonic()
                peers.all[1].kill()  # `ip netns exec` became the program
                took = [peers.lost_after(i, start) for i in (0, 2)]
                self.noticed(f"kill, {mode}", took)

    def test_blackhole(self):
        for mode in ("idle", "stream"):
            with netns.Hosts(3) as hosts:
                peers = self.peers(hosts, mode)
                hosts.blackhole(2)
                start = time.monotonic()
                took = [peers.lost_after(i, start) for i in range(3)]
                self.noticed(f"blackhole, {mode}", took)

    def test_short_blackhole_is_survived(self):
        for _ in range(20):
            with netns.Hosts(2) as hosts:
                peers = self.peers(hosts, "stream")
                start = time.monotonic()
                hosts.blackhole(1)
                time.sleep(0.4)
                hosts.unblackhole(1)
                if time.monotonic() - start > 0.8:
                    continue  # not a short one: the machine does other things
                for p in range(2):
                    for _ in range(3):
                        peers.until(p, "round")  # data flows again, both ways
                peers.all[0].kill()
                peers.until(1, "lost")
                return
        self.skipTest("the machine is too busy for a short blackhole")

    def test_stop_is_not_the_links_to_notice(self):
        with netns.Hosts(2) as hosts:
            peers = self.peers(hosts, "stream")
            peers.all[1].send_signal(signal.SIGSTOP)
            time.sleep(4)
            self.assertIsNone(peers.all[0].poll())
            peers.all[1].send_signal(signal.SIGCONT)
            start = time.monotonic()
            peers.all[0].kill()
            self.noticed("kill after a stop", [peers.lost_after(1, start)])


if __name__ == "__main__":
    missing = netns.why_not()
    if missing:
        print(f"skipped: no network namespaces here: {missing}")
        sys.exit(77)
    unittest.main()
