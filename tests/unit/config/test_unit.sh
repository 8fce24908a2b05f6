#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# test_unit UNIT: the systemd unit is as hard as promised: exposure at most 2.0.
set -eu -o pipefail
command -v systemd-analyze >/dev/null || { echo "no systemd-analyze" >&2; exit 77; }
out=$(systemd-analyze security --offline=true --threshold=20 "$1" 2>&1) || { echo "$out" >&2; exit 1; }
echo "$out" | tail -n 1
