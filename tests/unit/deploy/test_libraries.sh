#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# test_libraries INSTALL-DEPS PROGRAM...: what the programs are linked with is among what "install-deps run" installs, which is all
# that the container has. libc6 and libgcc-s1, which it depends on, are on every Debian.
set -eu -o pipefail
for tool in dpkg-query ldconfig objdump; do
	command -v "$tool" >/dev/null || { echo "no $tool: not Debian" >&2; exit 77; }
done
install_deps=$1
shift
want=$(for library in $(objdump -p "$@" | awk '$1 == "NEEDED" { print $2 }' | sort -u); do
	file=$(ldconfig -p | awk -v l="$library" '$1 == l && !seen++ { print $NF }')
	# Debian's merged /usr: dpkg knows some files by their old place.
	file=$(realpath "$file")
	dpkg-query -S "*${file#/usr}" | cut -d: -f1 | head -n 1
done | sort -u | grep -vxE 'libc6|libgcc-s1|lib[at]san[0-9]+|libubsan[0-9]+')
have=$(sed -n '/^run=(/,/^)/p' "$install_deps" | sed 's/#.*//' | grep -oE 'lib[a-z0-9.+-]+' | sort -u)
missing=$(comm -23 <(echo "$want") <(echo "$have"))
if [ -n "$missing" ]; then
	echo "$install_deps: run=( ) lacks: ${missing//$'\n'/ }" >&2
	exit 1
fi
