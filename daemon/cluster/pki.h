/* SPDX-License-Identifier: Apache-2.0
 * Certificates for those who have no authority of their own: a CA for the cluster, and a certificate for each node and
 * client. ECDSA on P-256; every file has mode 0600; nothing is ever overwritten.
 *
 * A node's certificate has its name, the URI of identity.h and its addresses as alternative names; the CA signs end
 * certificates only. DIRECTORY holds ca.crt and ca.key, NAME.crt and NAME.key. Files only, no threads.
 */
#pragma once

#include <stdint.h>

#include "base/error.h"
#include "daemon/cluster/identity.h"

#define CLUSTER_PKI_MAX_ADDRESSES 32u
#define CLUSTER_PKI_CA_DAYS 3650u
#define CLUSTER_PKI_NODE_DAYS 365u
#define CLUSTER_PKI_MAX_DAYS 36500u

/* Makes the directory if only it is missing, mode 0700. -EEXIST when a CA is there. */
int cluster_pki_init(const char *directory, const char *cluster, uint32_t days, struct base_error *e);

struct cluster_pki_node {
	const char *name;
	enum cluster_role role;
	const char *const *addresses; // IP addresses and host names under which others reach it
	uint32_t addresses_count;
	uint32_t days; // never beyond the CA's own end
};
/* The cluster's name comes from the CA. -EEXIST when the node has files there. */
int cluster_pki_issue(const char *directory, const struct cluster_pki_node *node, struct base_error *e);

struct cluster_pki_info {
	struct cluster_identity identity; // empty name when the certificate has no URI of ours
	uint64_t not_before_s, not_after_s; // of the epoch
};
/* That the three belong together and are valid at now_s: one clear error for a wrong key, a certificate of another CA,
 * one that is expired or not valid yet. */
int cluster_pki_check(const char *ca_path, const char *cert_path, const char *key_path, uint64_t now_s,
	struct cluster_pki_info *ret_info, struct base_error *e);
