#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Records bpe.json: small byte-level BPE vocabularies, one for each pre-tokenizer, and how they encode awkward texts.

The reference is the PyPI module `tokenizers` (python3 -m pip install tokenizers regex), with pre-tokenizers put together as
in the published tokenizer.json of GPT-2, SmolLM, Llama 3 and Qwen 2. Run it in this folder: ./record-bpe.py > bpe.json
"""
import importlib.util
import json
import random

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, trainers

spec = importlib.util.spec_from_file_location("splits", "record-splits.py")
splits = importlib.util.module_from_spec(spec)
spec.loader.exec_module(splits)

LLAMA = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
         r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
SPECIALS = ["<|end|>", "<|im_start|>", "<|im_start|>user"]


def byte_level(use_regex):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def llama(numbers):
    split = pre_tokenizers.Split(Regex(LLAMA % numbers), behavior="isolated", invert=False)
    return pre_tokenizers.Sequence([split, byte_level(False)])


FAMILIES = {
    "gpt-2": byte_level(True),
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level(True)]),
    "llama-bpe": llama("{1,3}"),
    "qwen2": llama(""),
}

WORDS = ("the of and to in is it that for was on are with they be at one have this from or had by hot but some what "
         "there we can out other were all your when up use word how said an each she which do their time if will way "
         "about many then them would write like so these her long make thing see him two has look more day could go "
         "weights stream thaw memory drive don't it's we've I'll they're 12 345 6789 2024 caf\u00e9 na\u00efve "
         "\u65e5\u672c\u8a9e \u4e2d\u6587 \u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440 !!! ... ??? == -> {} (); \n\n \t").split(" ")


def main():
    r = random.Random(2)
    corpus = [" ".join(r.choice(WORDS) for _ in range(40)) for _ in range(300)]
    texts = [t for t in splits.HAND if "\u017f" not in t]  # GGUF tools fold only ASCII letters in 's and the like
    texts += [" ".join(r.choice(WORDS) for _ in range(r.randint(1, 12))) for _ in range(40)]
    texts += ["".join(r.choice(splits.ATOMS) for _ in range(r.randint(2, 14))) for _ in range(40)]
    texts += ["<|im_start|>user\nhi<|end|>", "<|im_start|>use", "a<|end|>b <|end|> c", "<|im_start|><|im_start|>user"]
    families = {}
    for name, pre in FAMILIES.items():
        t = Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
        t.pre_tokenizer = pre
        t.train_from_iterator(corpus, trainers.BpeTrainer(
            vocab_size=480, special_tokens=[AddedToken(s, special=True) for s in SPECIALS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
        model = json.loads(t.to_str())["model"]
        tokens = sorted(model["vocab"], key=model["vocab"].get)
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        # With half of its merges gone, whole words are still tokens: what ignore_merges is for.
        if name == "llama-bpe":
            merges = merges[:len(merges) // 2]
            t.model = models.BPE(vocab=model["vocab"], merges=[tuple(m.split(" ")) for m in merges], ignore_merges=True)
        families[name] = {"tokens": tokens, "merges": merges, "ids": [t.encode(x).ids for x in texts]}
    print('{"reference": "PyPI tokenizers %s", "specials": %d,' % (tokenizers.__version__, len(SPECIALS)))
    print('"texts": %s,' % json.dumps(texts))
    print('"families": {%s}}' % ",\n".join(json.dumps(n) + ": " + json.dumps(f) for n, f in families.items()))


main()
