#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# test_unit UNIT: systemd accepts the unit, and its exposure (0 to 10, `systemd-analyze security`) is at most 1.5, as it was
# when it was written; 2.0 is what the design allows.
set -eu -o pipefail
command -v systemd-analyze >/dev/null || { echo "no systemd-analyze" >&2; exit 77; }
unit=$(mktemp -d)/thawd.service
trap 'rm -rf "${unit%/*}"' EXIT
# The program and the man pages need not be installed for what is asked here.
sed -E 's#^ExecStart=.*#ExecStart=/bin/true#; /^Documentation=/d' "$1" >"$unit"
out=$(systemd-analyze verify --man=no --recursive-errors=no "$unit" 2>&1) || { echo "verify: $out" >&2; exit 1; }
[ -z "$out" ] || { echo "verify warns: $out" >&2; exit 1; }
out=$(systemd-analyze security --offline=true --threshold=15 "$1" 2>&1) || { echo "$out" >&2; exit 1; }
echo "$out" | tail -n 1
