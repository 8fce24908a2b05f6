/* SPDX-License-Identifier: Apache-2.0
 * When a node that stands by may take the claim to coordinate. Only the rules are here: no I/O, no clock. Who asks etcd
 * (daemon/cluster/etcd/state.c) tells what was heard and when, on base_clock; one thread at a time.
 *
 * A coordinator has the claim by a lease of its own length, and begins new things until its own count says that the
 * lease is over. What counts is that length, as etcd says it, and not the one that this node would ask for itself:
 *
 *   - a claim that nobody has is free once the lease is over that it was last seen with: who lost the key alone takes it back
 *   - a holder renews its lease CLUSTER_CLAIM_ROUNDS times in its length, and who stands by looks as often: an etcd that was away for so
 *     long that the holder's lease may have run out for it is noticed by then, by a question that failed or by the time between two answers
 *   - after that the claim is not free before its holder, which may be in good health, has had the length of its lease and
 *     CLUSTER_CLAIM_RETURN_NS to come back for it. By then it is in doubt by its own count, too, even if etcd has lost all it knew
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define CLUSTER_CLAIM_ROUNDS 4u
#define CLUSTER_CLAIM_RETURN_NS 1000000000ull // the longest pause of a holder that tries again

struct cluster_claim_watch {
	uint64_t own_ns; // this node's lease: where the holder's is not known
	int64_t lease; // that another's claim was last seen with; 0: none, or it is over
	uint64_t lease_ns; // its length; 0: never heard of one
	uint64_t heard_ns; // the last answer; 0: none
	uint64_t back_ns; // the first answer after etcd had been away; 0: it never was, or its holder came back
	bool missed; // a question has failed since the last answer
};

void cluster_claim_watch_missed(struct cluster_claim_watch *w);
void cluster_claim_watch_heard(struct cluster_claim_watch *w, uint64_t now_ns);
/* Another has the claim, by this lease. */
void cluster_claim_watch_seen(struct cluster_claim_watch *w, int64_t lease, uint64_t lease_ns);
/* Another still has the claim. A length of its lease after etcd was back, it has come back for it. */
void cluster_claim_watch_held(struct cluster_claim_watch *w, uint64_t now_ns);
/* The lease that the claim was seen with is over, says etcd. */
void cluster_claim_watch_over(struct cluster_claim_watch *w);
/* Whether a claim that nobody has may be taken. */
bool cluster_claim_watch_free(const struct cluster_claim_watch *w, uint64_t now_ns);
/* How long after an answer the next question is due. */
uint64_t cluster_claim_watch_period(const struct cluster_claim_watch *w);
