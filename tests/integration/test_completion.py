# SPDX-License-Identifier: Apache-2.0
"""TAB after thawctl in the shells themselves: verbs, options, words. zsh and bash on a terminal, fish by its `complete -C`."""
import os
import pty
import re
import select
import shutil
import subprocess
import tempfile
import time
import unittest

BUILD = os.environ["THAW_BUILD"]
FOLDER = os.path.join(BUILD, "daemon", "ctl")

# What is typed before TAB, and what the line is then.
LINES = [
    ("thawctl dra", "thawctl drain "),
    ("thawctl undr", "thawctl undrain "),
    ("thawctl drain --no-w", "thawctl drain --no-wait "),
    ("thawctl completion fi", "thawctl completion fish "),
    ("thawctl config ch", "thawctl config check "),
]


def script(shell):
    return subprocess.run([os.path.join(FOLDER, "thawctl"), "completion", shell], capture_output=True, text=True, check=True).stdout


class Terminal:
    """An interactive shell on a pseudo terminal."""

    def __init__(self, argv, env):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execvpe(argv[0], argv, env)
        self.seen = ""

    def read(self, seconds):
        if select.select([self.fd], [], [], seconds)[0]:
            try:
                self.seen += os.read(self.fd, 65536).decode(errors="replace")
            except OSError:
                pass
        # Without colours, padding, and the first letter that zsh draws twice.
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|[\x00\x07\x08]", "", self.seen)

    def wait(self, pattern, seconds=60):
        end = time.monotonic() + seconds
        while not re.search(pattern, self.read(0.1)):
            if time.monotonic() > end:
                raise AssertionError(f"{pattern!r} is not in {self.seen!r}")

    def send(self, text):
        self.seen = ""
        os.write(self.fd, text.encode())

    def close(self):
        os.close(self.fd)
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)


class CompletionTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="thaw-completion-")
        self.addCleanup(shutil.rmtree, self.folder)
        self.env = dict(os.environ, PATH=FOLDER + ":" + os.environ["PATH"], TERM="vt100", HOME=self.folder, PS1="READY> ",
                        COLUMNS="200", LC_ALL="C.UTF-8")

    def need(self, shell):
        if not shutil.which(shell):
            self.skipTest(f"{shell} is not installed (apt install {shell})")

    def write(self, name, text):
        with open(os.path.join(self.folder, name), "w", encoding="utf-8") as f:
            f.write(text)

    def type_lines(self, argv, setup):
        t = Terminal(argv, self.env)
        self.addCleanup(t.close)
        t.wait("READY> ")
        t.send(setup + "; echo set''up\n")
        t.wait("setup(?s:.)*READY> ")
        for typed, want in LINES:
            with self.subTest(typed):
                t.send(typed + "\t")
                t.wait(re.escape(want))
                t.send("\x15\n")  # the line goes, a new prompt
                t.wait("READY> ")
        # Several: all are shown.
        t.send("thawctl status --output=\t\t" if "zsh" in argv[0] else "thawctl status --output \t\t")
        for word in ("json", "table", "wide"):
            t.wait(word)
        t.send("\x15\n")
        t.wait("READY> ")
        t.send("thawctl \t\t")
        for verb in ("status", "generate", "placement", "completion"):
            t.wait(rf"\b{verb}\b")

    def test_zsh(self):
        self.need("zsh")
        self.write("_thawctl", script("zsh"))
        self.type_lines(["zsh", "-f", "-i"], f"fpath=({self.folder} $fpath); autoload -Uz compinit; compinit -u -d {self.folder}/dump; "
                        "LISTMAX=1000; setopt no_beep")

    def test_bash(self):
        self.need("bash")
        self.write("thawctl", script("bash"))
        self.type_lines(["bash", "--norc", "--noprofile", "-i"], f". {self.folder}/thawctl; bind 'set completion-query-items 1000'; "
                        "bind 'set page-completions off'; bind 'set enable-bracketed-paste off'")

    def test_fish(self):
        self.need("fish")
        self.write("thawctl.fish", script("fish"))

        def complete(line):
            p = subprocess.run(["fish", "--no-config", "-c", f"source {self.folder}/thawctl.fish; complete -C {line!r}"],
                               env=self.env, capture_output=True, text=True, timeout=60, check=True)
            self.assertEqual(p.stderr, "")
            return [w.split("\t")[0] for w in p.stdout.splitlines()]
        for typed, want in LINES:
            self.assertEqual(complete(typed), [want.split()[-1]])
        self.assertEqual(sorted(complete("thawctl status --output ")), ["json", "table", "wide"])
        self.assertEqual(sorted(complete("thawctl plan --output ")), ["json", "svg", "table", "wide"])
        self.assertEqual(sorted(complete("thawctl completion ")), ["bash", "fish", "zsh"])
        self.assertLessEqual({"status", "generate", "placement", "completion"}, set(complete("thawctl ")))


if __name__ == "__main__":
    unittest.main(verbosity=2)
