/* SPDX-License-Identifier: Apache-2.0
 * The fleet's state in etcd (daemon/cluster/state.h). Keys, all below /thaw/CLUSTER/:
 *
 *   coordinator     who coordinates: {"node", "address"}, with the lease of its process; made by a transaction that finds none
 *   record          members, plans and epoch, as JSON; written by a transaction that finds `coordinator` to be the writer's own
 *   members/NODE    who could coordinate and is there, with the same lease
 *
 * A thread of its own keeps the lease, tries to make `coordinator` when daemon/cluster/claim.h lets it, and watches it,
 * so that a standby sees at once when it goes. It never gives up: what is wrong stands in the claim. read() and write()
 * have a connection of their own, and one second. close() revokes the lease, and tries that twice.
 */
#pragma once

#include "daemon/cluster/state.h"

#define ETCD_MIN_LEASE_NS (2 * 1000000000ull) // etcd 3.4 gives no shorter one with its usual timing
#define ETCD_MAX_LEASE_NS (60 * 1000000000ull)

extern const struct cluster_state_ops etcd_state_ops;
