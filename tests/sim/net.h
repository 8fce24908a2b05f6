/* SPDX-License-Identifier: Apache-2.0
 * The network between the simulated nodes, and what production code finds in place of UCX, the rendezvous and gRPC.
 *
 * A path leads from one node to another; messages on it take a drawn time, and it may be blocked in one direction or
 * both. A wire is a TCP connection of the data plane: a stream each way under link_core, which is production code. What
 * is blocked for WIRE_SILENT_NS is reset, as the kernel's probes do it. Wires end with RST in the middle of messages
 * when their process is killed, and silently when their host is. A call is a gRPC stream of the control plane
 * (control.c): it holds messages back while its path is blocked, and never gives up by itself.
 */
#pragma once

#include "shard/link/link.h"
#include "tests/sim/fiber.h"

enum sim_death {
	SIM_KILLED, // a process: its kernel says so at once
	SIM_GONE, // a host: nobody says anything
};

void sim_net_init(uint32_t nodes, bool near); // near: links that ranks which share layers would be given
void sim_net_finish(void);
bool sim_net_alive(struct sim_place p);
void sim_net_die(struct sim_place p, enum sim_death how);
void sim_net_block(uint32_t from, uint32_t to, bool on);
bool sim_net_blocked(uint32_t from, uint32_t to);
void sim_net_slow(uint32_t from, uint32_t to, uint64_t more_ns);
uint64_t sim_net_delay(uint32_t from, uint32_t to); // of a message that is sent now
void sim_net_cut(uint32_t a, uint32_t b); // resets all wires between them
bool sim_net_replay(void); // a message of an earlier epoch comes again on a wire; false: there is none yet

/* One end of a wire is this socket's: that end is reset, so that its process seems killed. */
void sim_net_reset_socket(int fd);

extern const struct link_ops sim_link_ops;

/* control.c */
void sim_control_open(uint32_t node, bool on); // its coordinator takes connections
uint32_t sim_control_calls(struct sim_place server);
void sim_control_look(void); // something that calls depend on has changed
void sim_control_cut(uint32_t a, uint32_t b); // resets all calls between them
void sim_control_finish(void);
