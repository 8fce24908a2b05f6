# SPDX-License-Identifier: Apache-2.0
"""thawd as an operator meets it: ranks that are killed, second daemons, bad files, signals. Real processes, small models."""
import glob
import json
import os
import re
import signal
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from cluster import Streams  # noqa: E402
from thaw import Daemon, PATIENCE, THAWD, flip_bits, wait_for


class DaemonTest(unittest.TestCase):
    def daemon(self, *sets):
        d = Daemon(sets)
        self.addCleanup(d.close)
        return d

    def loaded(self, *sets):
        d = self.daemon(*sets)
        d.sets.append(f"models.0.path={d.make_model()}")
        return d.start().wait_ready()

    def test_killed_rank_in_eight_streams(self):
        """kill -9 of the rank in the middle of 8 streams: each ends with the tokens that it would have had."""
        self.kill_in_eight_streams("memory.weights=12MiB")

    def test_killed_part_in_eight_streams(self):
        """The same of one of four ranks: two stages of two parts each."""
        self.kill_in_eight_streams("memory.weights=24MiB", "compute.stages=2", "compute.tensor=2")

    def kill_in_eight_streams(self, *sets):
        d = self.loaded(*sets)
        want = Streams.once(d, 40)
        self.assertTrue(all(len(w) == 40 for w in want))
        for kill in (1, len(d.ranks())):
            lost, back = (d.log().count(f"event=rank_{e}") for e in ("lost", "restarted"))
            running = Streams(d, want, 40)
            try:
                running.go_on()
                os.kill(sorted(d.ranks())[kill - 1], signal.SIGKILL)
                wait_for("a new rank", lambda: d.log().count("event=rank_restarted") > back)
                running.go_on()
            finally:
                running.stop()
            self.assertEqual(running.lost(), [])
            self.assertEqual(running.changed(), 0)
            self.assertEqual(d.log().count("event=rank_lost"), lost + 1)
        self.assertEqual(d.stop(), 0)

    def test_second_daemon(self):
        """A second daemon on the same store, or the same socket, says who is there and leaves it alone."""
        d = self.loaded()
        p = subprocess.run(d.command(), capture_output=True, text=True, timeout=PATIENCE, check=False)
        self.assertEqual(p.returncode, 1)
        self.assertIn(f"pid {d.process.pid}", p.stderr)
        self.assertIn("store", p.stderr)
        p = subprocess.run(d.command(f"store.path={d.path('other')}"), capture_output=True, text=True, timeout=PATIENCE, check=False)
        self.assertEqual(p.returncode, 1)
        self.assertIn("thaw.sock", p.stderr)
        self.assertIn(str(d.process.pid), p.stderr)
        self.assertEqual(len(d.generate("still there", 5)), 5)

    def test_models_that_cannot_be(self):
        """Missing, cut and too large models: one clear error each; the daemon serves on."""
        d = self.daemon()
        d.sets += [f"models.0.path={d.make_model()}", f"models.1.path={d.path('missing.gguf')}"]
        d.start()
        wait_for("the failure in the log", lambda: "missing.gguf" in d.log())
        wait_for("the good model", lambda: "event=model_ready" in d.log())
        p = d.ctl("load", d.path("nowhere.gguf"), check=False)
        self.assertEqual(p.returncode, 4, p.stderr)
        self.assertIn("nowhere.gguf", p.stderr)
        with open(d.make_model(), "rb") as f, open(d.path("cut.gguf"), "wb") as out:
            out.write(f.read()[:100000])
        p = d.ctl("load", d.path("cut.gguf"), check=False)
        self.assertEqual(p.returncode, 1, p.stderr)
        self.assertIn("cut.gguf", p.stderr)
        with open(d.path("text.gguf"), "w", encoding="utf-8") as out:
            out.write("this is no model\n")
        self.assertNotEqual(d.ctl("load", d.path("text.gguf"), check=False).returncode, 0)
        self.assertEqual(len(d.generate("still there", 5, "-m", "tiny")), 5)
        d.ctl("unload", "tiny")
        wait_for("the end of the rank", lambda: not d.ranks())
        wait_for("its name", lambda: d.ctl("load", d.make_model(), check=False).returncode == 0)
        self.assertEqual(len(d.generate("again", 5, "-m", "tiny")), 5)

    def test_tiny_budget(self):
        """A budget that is too small is refused with the bytes that are short, and exit code 5."""
        d = self.daemon("memory.weights=1MiB").start()
        p = d.ctl("load", d.make_model(), check=False)
        self.assertEqual(p.returncode, 5, p.stderr)
        self.assertIn("bytes short", p.stderr)
        self.assertIn("memory.weights", p.stderr)
        self.assertEqual(d.ctl("status", check=False).returncode, 6)
        self.assertFalse(glob.glob(d.path("store/*/layer-*")), "nothing is packed for a model that does not fit")

    def flip(self, d):
        """One bit in each 64 KiB of the layers' data."""
        for name in glob.glob(d.path("store/*/layer-*")):
            flip_bits(name)

    def test_corrupt_store(self):
        """Bits that change on the drive: never a silent wrong token; without the source not ready, until they are back."""
        d = self.loaded("memory.weights=8MiB")
        want = d.generate("the same words", 10)
        source = d.make_model()
        os.rename(source, source + ".away")
        self.flip(d)
        p = d.ctl("generate", "the same words", "-n", "10", "--ignore-eos", check=False)
        self.assertNotEqual(p.returncode, 0)
        self.assertRegex(p.stderr, r"layer \d+: .*/layer-\d+.*: checksum of \d+ bytes at \d+")
        wait_for("the event", lambda: re.search(r"layer-\d+.* at \d+ .*event=data_loss", d.log()))
        wait_for("the end of the repair", lambda: "event=store_repair_failed" in d.log())
        self.assertRegex(d.log(), r"cannot be packed anew: the source \S*tiny.gguf is gone")
        p = d.ctl("generate", "x", "-n", "1", check=False)
        self.assertEqual((p.returncode, p.stdout), (1, ""))
        p = d.ctl("status", check=False)
        self.assertEqual(p.returncode, 6)
        self.assertRegex(p.stdout, r'"ready":false(?s:.)*layer-\d+(?s:.)*"DATA_LOSS"(?s:.)*"degraded":true')
        self.flip(d)
        wait_for("the same words", lambda: self.same_words(d, want))  # what was read ahead is still bad once
        d.wait_ready()
        self.flip(d)
        self.assertEqual(d.stop(), 0)
        os.rename(source + ".away", source)
        d.start().wait_ready()
        self.assertRegex(d.log(), r"layer-(?s:.)*event=store_corrupt(?s:.)*packed anew(?s:.)*event=store_repaired")
        self.assertEqual(d.generate("the same words", 10), want)

    def same_words(self, d, want):
        """An error may come, but no wrong token."""
        got = d.answers("the same words", 10)
        self.assertIn(got, (None, want))
        return got is not None

    def test_corrupt_store_is_mended(self):
        """With its source there, a store that goes bad under a model that serves is packed anew, and the model goes on."""
        d = self.loaded("memory.weights=8MiB")
        want = d.generate("the same words", 10)
        self.flip(d)
        self.assertNotEqual(d.ctl("generate", "the same words", "-n", "10", check=False).returncode, 0)
        wait_for("the repair", lambda: "event=store_repaired" in d.log())
        wait_for("the same words", lambda: self.same_words(d, want))
        d.wait_ready()

    def test_signals(self):
        """SIGTERM lets a request finish, then it ends with 0; a second one does not wait; SIGHUP reads the config again."""
        d = self.loaded()
        with open(d.path("conf.d/a.yaml"), "w", encoding="utf-8") as f:
            f.write("daemon:\n  drain: 19s\n")
        d.process.send_signal(signal.SIGHUP)
        wait_for("the reload", lambda: "event=reloaded" in d.log())
        with open(d.path("conf.d/a.yaml"), "w", encoding="utf-8") as f:
            f.write("daemon:\n  drian: 19s\n")
        d.process.send_signal(signal.SIGHUP)
        wait_for("the refusal", lambda: "event=reload_failed" in d.log())
        self.assertIn("drian", d.log())
        p = d.ctl("reload", check=False)
        self.assertEqual(p.returncode, 1)
        self.assertRegex(p.stderr, r"a\.yaml:2:\d+: .*drian")
        os.unlink(d.path("conf.d/a.yaml"))
        self.assertIn("done", d.ctl("reload").stdout)
        client = d.popen("generate", "--token-ids", "1 300 500", "-n", "60", "--ignore-eos", text=False)
        first = os.read(client.stdout.fileno(), 65536)  # it runs
        self.assertEqual(d.stop(), 0)
        out, err = client.communicate(timeout=PATIENCE)
        self.assertEqual(client.returncode, 0, err)
        self.assertEqual(len((first + out).split()), 60)
        self.assertIn("STOPPING=1", d.notes())
        self.assertFalse(d.ranks())
        d.start("daemon.drain=10m", "scheduler.stuck=10m").wait_ready()
        os.kill(d.ranks()[0], signal.SIGSTOP)  # so the request does not come to its end
        client = d.popen("generate", "--token-ids", "1 300 500", "-n", "480", "--ignore-eos", text=False)
        wait_for("the request", lambda: json.loads(d.ctl("top").stdout)["models"][0].get("running"))
        d.process.send_signal(signal.SIGTERM)
        wait_for("draining", lambda: "STOPPING=1" in d.notes())
        self.assertIsNone(d.process.poll(), "it drains")
        d.stop()
        client.communicate(timeout=PATIENCE)
        self.assertNotEqual(client.returncode, 0)

    def test_watchdog_and_bad_config(self):
        d = self.daemon()
        d.start(env={"WATCHDOG_USEC": "2000000"})
        wait_for("WATCHDOG=1", lambda: "WATCHDOG=1" in d.notes())
        self.assertEqual(d.stop(signal.SIGINT), 0)
        for bad in ("memory.weights=12", "memory.wieghts=1GiB"):
            p = subprocess.run(d.command(bad), capture_output=True, text=True, timeout=PATIENCE, check=False)
            self.assertEqual(p.returncode, 78, p.stderr)
            self.assertIn(bad.split("=", maxsplit=1)[0], p.stderr)
        p = subprocess.run([THAWD, "--no-such-option"], capture_output=True, text=True, timeout=PATIENCE, check=False)
        self.assertEqual(p.returncode, 64)
        self.assertIn("--help", p.stderr)
        for bad, code, named in (((), 0, ""), ((f"models.0.path={d.folder}",), 78, "is a directory")):
            p = subprocess.run(d.command(*bad) + ["--check"], capture_output=True, text=True, timeout=PATIENCE, check=False)
            self.assertEqual(p.returncode, code, p.stderr)
            self.assertIn(named, p.stderr)

    def test_stages(self):
        """Two stages, two processes: the tokens of one stage. One of them is killed: the same again."""
        d = self.loaded()
        want = d.generate("the same words", 20)
        self.assertEqual(d.stop(), 0)
        d.start("compute.stages=2").wait_ready()
        self.assertEqual(len(d.ranks()), 2)
        self.assertEqual(d.generate("the same words", 20), want)
        os.kill(sorted(d.ranks())[-1], signal.SIGKILL)
        wait_for("new ranks", lambda: "event=rank_restarted" in d.log())
        self.assertEqual(d.generate("the same words", 20), want)
        self.assertEqual(d.stop(), 0)

    def test_parts(self):
        """Three stages of two parts: who has what; the same tokens in every life. Parts that cannot be: the reason."""
        d = self.loaded("compute.stages=3", "compute.tensor=2")
        shards = json.loads(d.ctl("placement").stdout)["placements"][0]["shards"]
        self.assertEqual([(s.get("stage", 0), s.get("tp_rank", 0), s.get("first_layer", 0), s["last_layer"]) for s in shards],
                         [(0, 0, 0, 1), (0, 1, 0, 1), (1, 0, 2, 4), (1, 1, 2, 4), (2, 0, 5, 7), (2, 1, 5, 7)])
        self.assertEqual(len(d.ranks()), 6)
        want = d.generate("the same words", 20)
        self.assertEqual(d.stop(), 0)
        d.start().wait_ready()
        self.assertEqual(d.generate("the same words", 20), want)
        self.assertEqual(d.stop(), 0)
        d.start("compute.tensor=3")
        wait_for("the refusal", lambda: "event=model_failed" in d.log())
        self.assertRegex(d.log(), r"compute.tensor: .*its 4 heads, which share 2 KV heads, do not divide by 3 \(possible: 1, 2")


if __name__ == "__main__":
    unittest.main(verbosity=2)
