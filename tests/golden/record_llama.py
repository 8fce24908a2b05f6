#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Records tests/golden/NAME.gguf and NAME.json from a tiny Hugging Face llama checkpoint and the logits of transformers.

    record_llama.py CHECKPOINT_DIRECTORY NAME

The directory has config.json, model.safetensors (bf16), golden.json (prompt, greedy tokens, versions) and logits.npy
(prompt positions x vocabulary, float32). Tensors are copied as BF16, bit for bit, so that the only difference to the
reference is arithmetic. The rows of q and k are put in the order of rotated pairs, which is GGUF's for llama; the
scaling of llama 3 becomes rope_freqs.weight. The reference had been cast to bfloat16 and back, and with it the
frequencies of its rotation (a forward pass in float64 with such frequencies equals its logits to 4e-6, one with exact
frequencies to 5e-3 and 4e-2); rope_freqs.weight also holds that difference. Tests use token ids: the vocabulary is made up.
Needs numpy alone.
"""
import json
import math
import pathlib
import struct
import sys

import numpy as np

F32, BF16 = 0, 30
U32, F32_VALUE, STRING, ARRAY = 4, 6, 8, 9


def read_safetensors(path):
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    tensors = {}
    for name, t in header.items():
        if name == "__metadata__":
            continue
        begin, end = t["data_offsets"]
        kinds = {"BF16": np.uint16, "F32": np.float32}
        tensors[name] = np.frombuffer(data[8 + size + begin : 8 + size + end], kinds[t["dtype"]]).reshape(t["shape"])
    return tensors


def pairs(w, heads):
    """Rows of each head from halves (i, i + n/2) to pairs (2i, 2i + 1)."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def to_f32(w):
    return (w.astype(np.uint32) << 16).view(np.float32) if w.dtype == np.uint16 else w.astype(np.float32)


def to_bf16(x):
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32).astype(np.float64)


def rope_factors(rope, dims):
    """Divisors of the exact frequencies that give those which the reference used."""
    exact = rope["rope_theta"] ** (-np.arange(0, dims, 2) / dims)
    return (exact / to_bf16(exact / llama3_factors(rope, dims))).astype(np.float32)


def llama3_factors(rope, dims):
    """1 for short waves, `factor` for long ones, between them a blend."""
    if rope["rope_type"] != "llama3":
        return np.ones(dims // 2)
    base, factor = rope["rope_theta"], rope["factor"]
    low, high, original = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
    out = []
    for i in range(dims // 2):
        wave = 2 * math.pi * base ** (2 * i / dims)
        if wave < original / high:
            out.append(1.0)
        elif wave > original / low:
            out.append(factor)
        else:
            smooth = (original / wave - low) / (high - low)
            out.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(out)


class Gguf:
    def __init__(self):
        self.keys, self.infos, self.data = [], [], b""

    def string(self, s):
        return struct.pack("<Q", len(s.encode())) + s.encode()

    def key(self, name, kind, payload):
        self.keys.append(self.string(name) + struct.pack("<I", kind) + payload)

    def strings(self, name, values):
        self.key(name, ARRAY, struct.pack("<IQ", STRING, len(values)) + b"".join(map(self.string, values)))

    def tensor(self, name, w):
        self.data += bytes(-len(self.data) % 32)
        dims = w.shape[::-1]
        kind = BF16 if w.dtype == np.uint16 else F32
        info = self.string(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
        self.infos.append(info + struct.pack("<IQ", kind, len(self.data)))
        self.data += np.ascontiguousarray(w).tobytes()

    def write(self, path):
        head = b"GGUF" + struct.pack("<IQQ", 3, len(self.infos), len(self.keys)) + b"".join(self.keys + self.infos)
        path.write_bytes(head + bytes(-len(head) % 32) + self.data)


def convert(config, tensors):
    g = Gguf()
    heads, kv_heads, dims = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    rope = config["rope_parameters"]
    g.key("general.architecture", STRING, g.string("llama"))
    for name, value in {
        "block_count": config["num_hidden_layers"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": dims,
        "attention.value_length": dims,
        "rope.dimension_count": dims,
        "context_length": config["max_position_embeddings"],
    }.items():
        g.key("llama." + name, U32, struct.pack("<I", value))
    g.key("llama.rope.freq_base", F32_VALUE, struct.pack("<f", rope["rope_theta"]))
    g.key("llama.attention.layer_norm_rms_epsilon", F32_VALUE, struct.pack("<f", config["rms_norm_eps"]))
    g.key("tokenizer.ggml.model", STRING, g.string("gpt2"))
    g.key("tokenizer.ggml.pre", STRING, g.string("gpt-2"))
    g.strings("tokenizer.ggml.tokens", [f"<{i}>" for i in range(config["vocab_size"])])
    g.strings("tokenizer.ggml.merges", [])
    g.tensor("token_embd.weight", tensors["model.embed_tokens.weight"])
    g.tensor("rope_freqs.weight", rope_factors(rope, dims))
    for layer in range(config["num_hidden_layers"]):
        for ours, theirs in {
            "attn_norm": "input_layernorm",
            "attn_q": "self_attn.q_proj",
            "attn_k": "self_attn.k_proj",
            "attn_v": "self_attn.v_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_norm": "post_attention_layernorm",
            "ffn_gate": "mlp.gate_proj",
            "ffn_up": "mlp.up_proj",
            "ffn_down": "mlp.down_proj",
        }.items():
            w = tensors[f"model.layers.{layer}.{theirs}.weight"]
            if ours in ("attn_q", "attn_k"):
                w = pairs(w, heads if ours == "attn_q" else kv_heads)
            g.tensor(f"blk.{layer}.{ours}.weight", to_f32(w) if w.ndim == 1 else w)
    g.tensor("output_norm.weight", to_f32(tensors["model.norm.weight"]))
    if not config["tie_word_embeddings"]:
        g.tensor("output.weight", tensors["lm_head.weight"])
    return g


def main():
    source, name = pathlib.Path(sys.argv[1]), sys.argv[2]
    here = pathlib.Path(__file__).parent
    config = json.loads((source / "config.json").read_text())
    golden = json.loads((source / "golden.json").read_text())
    convert(config, read_safetensors(source / "model.safetensors")).write(here / f"{name}.gguf")
    golden["rows"], golden["vocab"] = np.load(source / "logits.npy").shape
    (here / f"{name}.json").write_text(json.dumps(golden) + "\n")
    np.load(source / "logits.npy").astype("<f4").tofile(here / f"{name}.logits")


if __name__ == "__main__":
    main()
