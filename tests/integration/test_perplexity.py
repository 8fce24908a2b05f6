# SPDX-License-Identifier: Apache-2.0
"""thawctl eval --local with the real model against what llama.cpp's perplexity tool says of the same text."""
import json
import os
import subprocess
import sys
import tempfile
import unittest

MODEL = os.environ.get("THAW_TEST_MODEL")
TEXT = "/usr/share/common-licenses/GPL-3"  # of Debian's base-files
LLAMA_CPP = 18.39  # SmolLM2-135M-Instruct Q4_1, 14 chunks of 512 tokens, the second half of each counted


@unittest.skipUnless(os.path.exists(TEXT), f"{TEXT} is not there")
class PerplexityTest(unittest.TestCase):
    def test_perplexity(self):
        thawctl = os.path.join(os.environ["THAW_BUILD"], "daemon", "ctl", "thawctl")
        with tempfile.TemporaryDirectory() as store:
            p = subprocess.run([thawctl, "eval", "--local", MODEL, "--set", f"store.path={store}", "--text", TEXT, "--context", "512",
                                "-o", "json"], capture_output=True, text=True, timeout=600, check=False)
        self.assertEqual(p.returncode, 0, p.stderr)
        got = json.loads(p.stdout)
        print(f"perplexity {got['perplexity']:.4f}, llama.cpp {LLAMA_CPP}", file=sys.stderr)
        self.assertEqual(got["chunks"], 14)
        self.assertLessEqual(abs(got["perplexity"] / LLAMA_CPP - 1), 0.01)


if __name__ == "__main__":
    if not MODEL:
        print("THAW_TEST_MODEL is not set: skipped")
        sys.exit(77)
    unittest.main(verbosity=2)
