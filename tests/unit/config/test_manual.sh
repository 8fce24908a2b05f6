#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# test_manual THAWCTL DOCS: thaw.yaml(5) has every key with its default, thawctl(1) every verb and option, the example
# configuration is one, and the pages are clean mdoc.
set -eu -o pipefail
thawctl=$1 docs=$2
bad=0

complain() {
	echo "$*" >&2
	bad=1
}

while IFS=$'\t' read -r key default; do
	grep -qxF -- ".It Ic $key" "$docs/thaw.yaml.5" || complain "thaw.yaml.5: no $key"
	grep -A 12 -xF -- ".It Ic $key" "$docs/thaw.yaml.5" | grep -q -- "default: ${default:-none}\." ||
		complain "thaw.yaml.5: $key: default is $default"
done < <("$thawctl" config keys -o json | python3 -c '
import json, sys
for k in json.load(sys.stdin)["keys"]:
    print(k["key"], k["default"], sep="\t")')

while read -r verb; do
	grep -q -- "^\.It Cm $verb\>" "$docs/thawctl.1" || complain "thawctl.1: no $verb"
	while read -r option; do
		grep -qE -- "(Fl|,) -$option( |\$)" "$docs/thawctl.1" || complain "thawctl.1: $verb: no --$option"
	done < <("$thawctl" help "$verb" | sed -n '/^Options:/,$s/^  ...\{0,2\} *--\([a-z-]*\).*/\1/p')
done < <("$thawctl" help | sed -n '/^Verbs:/,/^$/s/^  \([a-z]*\) .*/\1/p')

"$thawctl" config check --config "$docs/../deploy/thaw.yaml" --conf-dir "$docs/figures" >/dev/null || complain "deploy/thaw.yaml is not accepted"

if command -v mandoc >/dev/null; then
	for page in "$docs"/*.[158]; do
		mandoc -Tlint -W warning "$page" >&2 || complain "$page: see above"
	done
fi
exit $bad
