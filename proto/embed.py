#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Turns a file into a C array: embed.py INPUT OUTPUT NAME"""
import sys

data = open(sys.argv[1], "rb").read()
name = sys.argv[3]
with open(sys.argv[2], "w", encoding="ascii") as out:
    out.write("#include <stddef.h>\n#include <stdint.h>\n")
    out.write(f"extern const uint8_t {name}[];\nextern const size_t {name}_bytes;\n")
    out.write(f"const size_t {name}_bytes = {len(data)};\nconst uint8_t {name}[] = {{\n")
    for i in range(0, len(data), 24):
        out.write(",".join(str(b) for b in data[i:i + 24]) + ",\n")
    out.write("};\n")
