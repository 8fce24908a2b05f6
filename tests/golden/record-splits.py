#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Records splits.json: how the regular expressions of four pre-tokenizers cut awkward texts into pieces.

The reference is the PyPI module `regex` (python3 -m pip install regex), run with the expressions that the model
families publish, in the form in which GGUF tools use them. Run it in this folder: ./record-splits.py > splits.json
"""
import json
import random

import regex

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA = (r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,%d}"
         r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def split_all(expression, text):
    pieces = regex.findall(expression, text)
    assert "".join(pieces) == text, text
    return pieces


def split_smollm(text):
    pieces = []
    for part in regex.split(r"(\p{N})", text):
        pieces += [part] if regex.fullmatch(r"\p{N}", part) else split_all(GPT2, part)
    return pieces


HAND = [
    "Hello world", "  leading", "trailing  ", "a\n\nb", "a \n \n b", "\r\n\r\nx", "tabs\t\tand\tmore", " \t x",
    "don't DON'T we've WE'VE I'll I'LL it's it'S 'tis '", "''s 's", "rock'n'roll", "x'd y'", "'l", "'L", "'re'RE're",
    "12345 1234567", "1,234.56", "3.14e-10", " 42", "  42", "\u00b2\u00b3 \u00bd x\u00b2", "\u0661\u0662\u0663\u0664",
    "\u216b\u216b\u216b\u216b", "foo_bar(baz);", "!!!\n\n???", " ...\n x", "a,b", " ,x", "\u201cquotes\u201d",
    "caf\u00e9 cafe\u0301", "na\u00efve \u0416\u0443\u043a", "\u65e5\u672c\u8a9e\u306e\u30c6\u30b9\u30c8",
    "\uc548\ub155\ud558\uc138\uc694 \uc138\uacc4", "\u0645\u0631\u062d\u0628\u0627 \u0628\u0643",
    "\u0939\u093f\u0928\u094d\u0926\u0940", "\u0e20\u0e32\u0e29\u0e32", "a\u00a0b", "a\u00a0\u00a0b", "\u3000x",
    "\u2003 y", "\u200bzero\u200b", "\u2028line\u2029", "\u0085x", "\U0001f600\U0001f468\u200d\U0001f469 ok",
    "\U00010400\U0001d7d8", "x\u0000y", " ", "  ", "\n", " \n", "\n ", "\n\n \n", " \n\n  x", "\u00ad\ufeffz",
    "\u0378", "\ue000p", "#include <stdio.h>\nint main(void)\n{\n\treturn 0;\n}\n", "https://a.b/c?d=e&f#g",
    "e-mail@example.org", "  \n1", "1 2  3", "\v\fx", "\x1c\x1dx", "A\u0130\u0131\u017f 'ſ", "\u01c5\u02b0\u05d0",
]

ATOMS = [
    "a", "Bc", "\u00e9", "\u4e2d", " ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "1", "23", "\u00b2", "\u0663",
    "'s", "'LL", "'", ".", "!?", "_", "\u0301", "\U0001f600", "\u200b", "<|", "|>",
]


def main():
    r = random.Random(1)
    texts = HAND + ["".join(r.choice(ATOMS) for _ in range(r.randint(2, 14))) for _ in range(200)]
    cases = [{"text": t, "gpt-2": split_all(GPT2, t), "smollm": split_smollm(t), "llama-bpe": split_all(LLAMA % 3, t),
              "qwen2": split_all(LLAMA % 1, t)} for t in texts]
    print('{"reference": "PyPI regex %s", "cases": [' % regex.__version__)
    print(",\n".join(json.dumps(c, ensure_ascii=True) for c in cases))
    print("]}")


if __name__ == "__main__":
    main()
