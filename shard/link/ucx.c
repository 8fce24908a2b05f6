// SPDX-License-Identifier: Apache-2.0
#include "shard/link/ucx_internal.h"

#include <errno.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/size.h"
#include "shard/link/socket.h"

#define AM_ID 7u
#define PUMP_TURNS 32
#define PORT_TRIES 8
#define STOP_NS BASE_NS_PER_SECOND // for what UCX still holds
#define LEAVE_NS (BASE_NS_PER_SECOND / 5) // for what was sent before close
#define DRAIN_NS (2 * BASE_NS_PER_SECOND) // for what a goodbye promised
#define WORD_CONNECTED 'C'
#define WORD_GOODBYE 'G'

static struct link_ucx_group *ucx(struct link_core *c)
{
	return (struct link_ucx_group *)c;
}

// ---- receiving

static void append(struct link_core *c, struct link_ucx_pair *p, const void *data, size_t n)
{
	size_t from = (size_t)(p->in_head & (c->ring_bytes - 1));
	size_t first = n < c->ring_bytes - from ? n : c->ring_bytes - from;
	if (!n)
		return;
	memcpy(p->in_data + from, data, first);
	memcpy(p->in_data, (const uint8_t *)data + first, n - first);
	p->in_head += n;
}

/* False: the peer breaks the rules. */
static bool take(struct link_ucx_group *g, const struct link_ucx_wire *w, const void *data, size_t n)
{
	struct link_core *c = &g->core;
	struct link_ucx_pair *p = &g->pairs[w->from];
	if (w->sequence != p->got || w->consumed > p->out_head || w->consumed < p->out_tail)
		return false;
	p->got++;
	p->out_tail = w->consumed;
	p->ready |= (w->flags & LINK_UCX_READY) != 0;
	struct link_core_header h = {w->epoch, w->message_bytes, w->tag, 0};
	bool begin = w->flags & LINK_UCX_BEGIN;
	size_t bytes = n + (begin ? LINK_CORE_HEADER_BYTES : 0);
	if (bytes < n || bytes > c->ring_bytes - (p->in_head - p->in_tail) || (n && !p->in_data))
		return false;
	if (bytes == 0)
		return true;
	if (p->in_head == p->in_tail && link_core_deliver(c, w->from, begin ? &h : NULL, data, n)) {
		p->in_head += bytes;
		p->in_tail += bytes;
		return true;
	}
	if (begin)
		append(c, p, &h, LINK_CORE_HEADER_BYTES);
	append(c, p, data, n);
	return true;
}

static ucs_status_t on_message(
	void *arg, const void *header, size_t header_bytes, void *data, size_t n, const ucp_am_recv_param_t *param)
{
	struct link_ucx_group *g = arg;
	struct link_ucx_wire w;
	if (header_bytes != sizeof w || (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV))
		return UCS_OK;
	memcpy(&w, header, sizeof w);
	// Strangers and other epochs are dropped.
	if (w.from >= g->core.group.members || w.epoch != g->core.group.epoch || !g->pairs[w.from].ep ||
		w.token != g->pairs[w.from].my_token || link_core_is_dead(&g->core))
		return UCS_OK;
	if (!g->broken && !take(g, &w, data, n))
		g->broken = true;
	return UCS_OK;
}

static size_t available(struct link_core *c, uint32_t peer)
{
	const struct link_ucx_pair *p = &ucx(c)->pairs[peer];
	return (size_t)(p->in_head - p->in_tail);
}

static void read_stream(struct link_core *c, uint32_t peer, void *out, size_t n)
{
	const struct link_ucx_pair *p = &ucx(c)->pairs[peer];
	size_t from = (size_t)(p->in_tail & (c->ring_bytes - 1));
	size_t first = n < c->ring_bytes - from ? n : c->ring_bytes - from;
	memcpy(out, p->in_data + from, first);
	memcpy((uint8_t *)out + first, p->in_data, n - first);
}

static void consume(struct link_core *c, uint32_t peer, size_t n)
{
	ucx(c)->pairs[peer].in_tail += n;
}

// ---- sending

static bool is_busy(struct link_core *c, uint32_t peer)
{
	return ucx(c)->pairs[peer].busy;
}

static size_t space(struct link_core *c, uint32_t peer)
{
	const struct link_ucx_pair *p = &ucx(c)->pairs[peer];
	return p->busy || p->failed ? 0 : c->ring_bytes - (size_t)(p->out_head - p->out_tail);
}

static void on_sent(void *request, ucs_status_t status, void *arg)
{
	struct link_ucx_pair *p = arg;
	p->busy = false;
	p->failed |= status != UCS_OK;
	p->owner->outstanding--;
	p->owner->ucp.request_free(request);
}

static void send_piece(struct link_ucx_group *g, uint32_t peer, uint16_t flags, uint64_t message_bytes, uint32_t tag,
	const void *data, size_t n)
{
	struct link_ucx_pair *p = &g->pairs[peer];
	p->out = (struct link_ucx_wire){
		.token = p->its_token,
		.epoch = g->core.group.epoch,
		.sequence = p->sent++,
		.consumed = p->in_tail,
		.message_bytes = message_bytes,
		.tag = tag,
		.from = (uint16_t)g->core.group.me,
		.flags = flags,
	};
	p->in_told = p->in_tail;
	p->credit_last = !flags && n == 0;
	ucp_request_param_t param = {
		.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
		.flags = UCP_AM_SEND_FLAG_EAGER,
		.cb.send = on_sent,
		.user_data = p,
	};
	ucs_status_ptr_t request = g->ucp.am_send_nbx(p->ep, AM_ID, &p->out, sizeof p->out, data, n, &param);
	if (UCS_PTR_IS_ERR(request)) {
		p->failed = true;
	} else if (request) {
		p->busy = true;
		g->outstanding++;
	}
}

static void write_stream(
	struct link_core *c, uint32_t peer, const struct link_core_header *h, const void *data, size_t n)
{
	ucx(c)->pairs[peer].out_head += n + (h ? LINK_CORE_HEADER_BYTES : 0);
	send_piece(ucx(c), peer, h ? LINK_UCX_BEGIN : 0, h ? h->length : 0, h ? h->tag : 0, data, n);
}

// ---- progress

static bool turn(struct link_ucx_group *g)
{
	bool moved = false;
	for (int i = 0; i < PUMP_TURNS && g->ucp.worker_progress(g->worker); i++)
		moved = true;
	return moved;
}

static void tell_credit(struct link_ucx_group *g)
{
	for (uint32_t i = 0; i < g->core.group.members; i++) {
		struct link_ucx_pair *p = &g->pairs[i];
		if (p->in_tail - p->in_told >= g->core.ring_bytes / 4 && !p->busy && !p->failed)
			send_piece(g, i, 0, 0, 0, NULL, 0);
	}
}

static bool pump(struct link_core *c)
{
	struct link_ucx_group *g = ucx(c);
	if (!g->worker)
		return false;
	bool moved = turn(g);
	tell_credit(g);
	for (uint32_t i = 0; i < c->group.members; i++)
		c->peers[i].gone |= g->pairs[i].failed;
	if (g->broken)
		link_core_fail(c);
	return moved;
}

/* UCX says when it has copied a piece, not when a socket has taken the copy, and its flush (uct_tcp_ep_flush of UCX
 * 1.13) waits for an answer that a peer gives only while it is in a verb. But a socket that is full holds back the next
 * piece too: so one more follows, of credit alone. Once UCX has that one, all before it have gone. */
static bool settled(struct link_core *c)
{
	struct link_ucx_group *g = ucx(c);
	bool all = true;
	for (uint32_t i = 0; i < c->group.members && g->worker; i++) {
		struct link_ucx_pair *p = &g->pairs[i];
		if (!p->ep || p->failed)
			continue;
		if (!p->busy && !p->credit_last)
			send_piece(g, i, 0, 0, 0, NULL, 0);
		all &= !p->busy;
	}
	return all;
}

static bool arm(struct link_core *c)
{
	struct link_ucx_group *g = ucx(c);
	if (!g->worker)
		return true;
	ucs_status_t status = g->ucp.worker_arm(g->worker);
	g->broken |= status != UCS_OK && status != UCS_ERR_BUSY;
	return status == UCS_OK;
}

static void disarm(struct link_core *c)
{
}

/* Of a peer that is gone: whether everything that it sent has come. */
static bool drained(struct link_core *c, uint32_t peer)
{
	struct link_ucx_group *g = ucx(c);
	struct link_ucx_pair *p = &g->pairs[peer];
	if (p->failed || !p->goodbye || p->got >= p->goodbye_messages)
		return true;
	if (base_clock_now_ns() < p->drain_until_ns)
		return false;
	uint64_t count;
	(void)!read(g->timer_fd, &count, sizeof count);
	return true;
}

static void hear_word(struct link_ucx_group *g, struct link_ucx_pair *p)
{
	if (p->control[0] == WORD_CONNECTED) {
		p->connected = true;
	} else {
		memcpy(&p->goodbye_messages, p->control + 1, 8);
		p->goodbye = true;
		p->drain_until_ns = base_clock_now_ns() + DRAIN_NS;
		struct itimerspec t = {.it_value = {.tv_sec = 2, .tv_nsec = 10000000}};
		timerfd_settime(g->timer_fd, 0, &t, NULL);
	}
	p->control_used = 0;
}

static void socket_bytes(struct link_core *c, uint32_t peer, const uint8_t *bytes, size_t n)
{
	struct link_ucx_group *g = ucx(c);
	struct link_ucx_pair *p = &g->pairs[peer];
	for (size_t i = 0; i < n; i++) {
		p->control[p->control_used++] = bytes[i];
		uint8_t word = p->control[0];
		if (word != WORD_CONNECTED && word != WORD_GOODBYE) {
			g->broken = true;
			return;
		}
		if (p->control_used == (word == WORD_CONNECTED ? 1u : 9u))
			hear_word(g, p);
	}
}

// ---- ends

/* The peers will see the goodbye and then wait for as many messages as it names. */
static void leave(struct link_core *c)
{
	struct link_ucx_group *g = ucx(c);
	uint64_t until = base_clock_now_ns() + LEAVE_NS;
	while (!settled(c) && base_clock_now_ns() < until)
		g->ucp.worker_progress(g->worker);
	for (uint32_t i = 0; i < c->group.members && g->worker; i++) {
		const struct link_ucx_pair *p = &g->pairs[i];
		uint64_t messages = p->sent - p->credit_last; // nobody needs credit any more
		uint8_t word[9] = {WORD_GOODBYE};
		memcpy(word + 1, &messages, 8);
		if (c->peers[i].fd >= 0)
			(void)!send(c->peers[i].fd, word, sizeof word, MSG_DONTWAIT | MSG_NOSIGNAL);
	}
}

static void on_closed(void *request, ucs_status_t status, void *arg)
{
	struct link_ucx_group *g = arg;
	g->outstanding--;
	g->ucp.request_free(request);
}

/* Endpoints are closed by force, and then UCX gives back the pieces that it still holds; what it does not give back
 * ends with the worker. */
static void stop(struct link_core *c)
{
	struct link_ucx_group *g = ucx(c);
	if (!g->worker)
		return;
	for (uint32_t i = 0; i < c->group.members; i++) {
		if (!g->pairs[i].ep)
			continue;
		ucp_request_param_t param = {
			.op_attr_mask =
				UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
			.flags = UCP_EP_CLOSE_FLAG_FORCE,
			.cb.send = on_closed,
			.user_data = g,
		};
		ucs_status_ptr_t request = g->ucp.ep_close_nbx(g->pairs[i].ep, &param);
		if (request && !UCS_PTR_IS_ERR(request))
			g->outstanding++;
		g->pairs[i].ep = NULL;
	}
	uint64_t until = base_clock_now_ns() + STOP_NS;
	while (g->outstanding && base_clock_now_ns() < until)
		g->ucp.worker_progress(g->worker);
	if (g->address)
		g->ucp.worker_release_address(g->worker, g->address);
	g->address = NULL;
	g->ucp.worker_destroy(g->worker);
	g->worker = NULL;
}

static void destroy(struct link_core *c)
{
	struct link_ucx_group *g = ucx(c);
	stop(c);
	if (g->context)
		g->ucp.cleanup(g->context);
	if (g->timer_fd >= 0)
		close(g->timer_fd);
	for (uint32_t i = 0; i < c->group.members; i++)
		free(g->pairs[i].in_data);
	link_core_finish(c);
	free(g);
}

// ---- create

static int status_errno(ucs_status_t status)
{
	switch (status) {
	case UCS_OK:
		return 0;
	case UCS_ERR_NO_MEMORY:
		return -ENOMEM;
	case UCS_ERR_NO_DEVICE:
	case UCS_ERR_UNREACHABLE:
		return -EHOSTUNREACH;
	case UCS_ERR_CONNECTION_RESET:
	case UCS_ERR_ENDPOINT_TIMEOUT:
	case UCS_ERR_NOT_CONNECTED:
		return -ECONNRESET;
	default:
		return -EIO;
	}
}

/* The bytes of an IP address, IPv4 also where it comes as a mapped one. */
static const uint8_t *ip_bytes(const struct sockaddr *a, size_t *ret_bytes)
{
	const struct in6_addr *six = &((const struct sockaddr_in6 *)a)->sin6_addr;
	*ret_bytes = 0;
	if (a->sa_family == AF_INET) {
		*ret_bytes = 4;
		return (const uint8_t *)&((const struct sockaddr_in *)a)->sin_addr;
	}
	if (a->sa_family != AF_INET6)
		return NULL;
	*ret_bytes = IN6_IS_ADDR_V4MAPPED(six) ? 4 : 16;
	return six->s6_addr + 16 - *ret_bytes;
}

/* The interface that has the address. */
static const char *find_device(const struct ifaddrs *all, const struct sockaddr *own)
{
	size_t bytes, other;
	const uint8_t *address = ip_bytes(own, &bytes), *candidate;
	for (const struct ifaddrs *a = all; a && address; a = a->ifa_next) {
		candidate = a->ifa_addr ? ip_bytes(a->ifa_addr, &other) : NULL;
		if (candidate && other == bytes && memcmp(candidate, address, bytes) == 0)
			return a->ifa_name;
	}
	return NULL;
}

static bool is_listed(const char *list, const char *name)
{
	size_t n = strlen(name);
	for (const char *p = list; (p = strstr(p, name)); p += n) {
		if ((p == list || p[-1] == ',') && (p[n] == ',' || p[n] == 0))
			return true;
	}
	return false;
}

/* The network interfaces of the sockets, so that data ports are open where the control connections are and nowhere
 * else; for unix sockets the loopback. */
static void name_devices(const int *fds, uint32_t members, char *out, size_t room)
{
	struct ifaddrs *all = NULL;
	size_t used = 0;
	out[0] = 0;
	if (getifaddrs(&all) < 0)
		all = NULL;
	for (uint32_t i = 0; i < members; i++) {
		struct sockaddr_storage own = {0};
		socklen_t n = sizeof own;
		if (fds[i] < 0 || getsockname(fds[i], (struct sockaddr *)&own, &n) < 0)
			continue;
		const char *name = own.ss_family == AF_UNIX ? "lo" : find_device(all, (struct sockaddr *)&own);
		if (name && !is_listed(out, name) && used + strlen(name) + 2 <= room)
			used += (size_t)snprintf(out + used, room - used, "%s%s", used ? "," : "", name);
	}
	if (!used)
		snprintf(out, room, "all");
	freeifaddrs(all);
}

static ucs_status_t configure(struct link_ucx_group *g, const int *fds, ucp_config_t *config)
{
	char devices[256], ports[16];
	snprintf(ports, sizeof ports, "%u-%u", g->port, g->port);
	name_devices(fds, g->core.group.members, devices, sizeof devices);
	const struct {
		const char *environment, *name, *value; // the environment, where it is named, leads
	} options[] = {
		{"UCX_TLS", "TLS", "^sm"}, // inside a host there is the local engine
		{"UCX_NET_DEVICES", "NET_DEVICES", devices}, //
		{NULL, "ZCOPY_THRESH", "inf"}, //
		{NULL, "RNDV_THRESH", "inf"}, //
		{NULL, "MAX_EAGER_LANES", "1"}, // keeps the order
		{NULL, "KEEPALIVE_INTERVAL", "inf"}, // the sockets notice; and an idle worker sleeps
		// Of the TCP transport; here, unlike in the environment, its options have no prefix.
		{NULL, "TX_SEG_SIZE", "128K"}, //
		{NULL, "RX_SEG_SIZE", "128K"}, //
		{NULL, "PORT_RANGE", ports}, // link_ucx_guard
		{NULL, "CONN_NB", "y"}, // a blackholed peer must not hold create()
	};
	for (size_t i = 0; i < base_array_size(options); i++) {
		if (options[i].environment && getenv(options[i].environment))
			continue;
		ucs_status_t status = g->ucp.config_modify(config, options[i].name, options[i].value);
		if (status != UCS_OK)
			return status;
	}
	return UCS_OK;
}

static ucs_status_t open_context(struct link_ucx_group *g, const int *fds)
{
	ucp_config_t *config;
	ucs_status_t status = g->ucp.config_read(NULL, NULL, &config);
	if (status != UCS_OK)
		return status;
	status = configure(g, fds, config);
	ucp_params_t params = {
		.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_ESTIMATED_NUM_EPS,
		.features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP,
		.estimated_num_eps = g->core.group.members,
	};
	if (status == UCS_OK)
		status = g->ucp.init_version(UCP_API_MAJOR, UCP_API_MINOR, &params, config, &g->context);
	g->ucp.config_release(config);
	return status;
}

static ucs_status_t open_worker(struct link_ucx_group *g, const int *fds)
{
	ucs_status_t status = open_context(g, fds);
	if (status != UCS_OK)
		return status;
	// One thread at a time, but not always the one that creates.
	ucp_worker_params_t worker = {
		.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE | UCP_WORKER_PARAM_FIELD_EVENTS,
		.thread_mode = UCS_THREAD_MODE_SERIALIZED,
		.events = UCP_WAKEUP_RMA | UCP_WAKEUP_AMO | UCP_WAKEUP_TAG_SEND | UCP_WAKEUP_TAG_RECV | UCP_WAKEUP_TX |
			  UCP_WAKEUP_RX,
	};
	status = g->ucp.worker_create(g->context, &worker, &g->worker);
	if (status != UCS_OK) {
		g->ucp.cleanup(g->context);
		g->context = NULL;
	}
	return status;
}

static ucs_status_t take_address(struct link_ucx_group *g)
{
	ucp_am_handler_param_t handler = {
		.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB |
			      UCP_AM_HANDLER_PARAM_FIELD_ARG | UCP_AM_HANDLER_PARAM_FIELD_FLAGS,
		.id = AM_ID,
		.cb = on_message,
		.arg = g,
		.flags = UCP_AM_FLAG_WHOLE_MSG,
	};
	ucs_status_t status = g->ucp.worker_set_am_recv_handler(g->worker, &handler);
	return status == UCS_OK ? g->ucp.worker_get_address(g->worker, &g->address, &g->address_bytes) : status;
}

static int open_ucx(struct link_ucx_group *g, const int *fds, struct base_error *e)
{
	ucs_status_t status = UCS_OK;
	unsigned major, minor, release;
	int r = link_ucx_library_load(&g->ucp, e);
	if (r < 0)
		return r;
	g->ucp.get_version(&major, &minor, &release);
	g->version = major << 16 | minor << 8;
	for (int i = 0; i < PORT_TRIES && !g->worker && r == 0; i++) { // somebody else may take the port meanwhile
		r = link_ucx_guard_pick_port(&g->port);
		if (r == 0)
			status = open_worker(g, fds);
	}
	if (r < 0)
		return base_error_set(e, r, "link: no port for UCX to listen at: %s (look at UCX_TCP_PORT_RANGE)",
			strerrordesc_np(-r));
	if (status == UCS_OK) {
		r = link_ucx_guard(g->port, fds, g->core.group.members);
		if (r < 0)
			return base_error_set(e, r, "link: UCX's port %u cannot be closed to strangers: %s", g->port,
				strerrordesc_np(-r));
		status = take_address(g);
	}
	if (status != UCS_OK)
		return base_error_set(e, status_errno(status),
			"link: UCX does not start: %s (look at UCX_TLS and UCX_NET_DEVICES)",
			g->ucp.status_string(status));
	return 0;
}

static void on_endpoint_error(void *arg, ucp_ep_h ep, ucs_status_t status)
{
	struct link_ucx_pair *p = arg;
	p->failed = true;
}

static int connect_peer(struct link_ucx_group *g, uint32_t peer, const void *address, struct base_error *e)
{
	struct link_ucx_pair *p = &g->pairs[peer];
	ucp_ep_params_t params = {
		.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
			      UCP_EP_PARAM_FIELD_ERR_HANDLER,
		.address = address,
		.err_mode = UCP_ERR_HANDLING_MODE_PEER,
		.err_handler = {.cb = on_endpoint_error, .arg = p},
	};
	p->in_data = malloc(g->core.ring_bytes);
	if (!p->in_data)
		return base_error_set(e, -ENOMEM, "link: no memory for what member %u sends", peer);
	ucs_status_t status = g->ucp.ep_create(g->worker, &params, &p->ep);
	if (status == UCS_OK)
		return 0;
	p->ep = NULL;
	return base_error_set(e, status_errno(status),
		"link: member %u has no transport of UCX in common with this one (%s): look at UCX_TLS and "
		"UCX_NET_DEVICES "
		"on both",
		peer, g->ucp.status_string(status));
}

/* 1 when all peers are connected both ways and know it, 0 when some are not yet. */
static int look_at_peers(struct link_ucx_group *g, bool *told, uint32_t *ret_missing, struct base_error *e)
{
	struct link_core *c = &g->core;
	bool ready = true, connected = true;
	for (uint32_t i = 0; i < c->group.members; i++) {
		const struct link_ucx_pair *p = &g->pairs[i];
		if (c->peers[i].fd < 0)
			continue;
		if (!p->connected && (c->peers[i].gone || p->failed))
			return base_error_set(e, -ECONNRESET,
				p->failed ? "link: member %u cannot be reached over UCX"
					  : "link: member %u closed before it was connected",
				i);
		if (!p->ready || p->busy || !p->connected)
			*ret_missing = i;
		ready &= p->ready && !p->busy;
		connected &= p->connected;
	}
	if (g->broken)
		return base_error_set(e, -EPROTO, "link: a member said what is no word of this protocol");
	if (ready && !*told) {
		*told = true;
		for (uint32_t i = 0; i < c->group.members; i++) {
			uint8_t word = WORD_CONNECTED;
			if (c->peers[i].fd >= 0)
				(void)!send(c->peers[i].fd, &word, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
		}
	}
	return ready && connected;
}

/* A first message to and from everyone, and then the word of everyone that it has them all: from there on nobody needs
 * the help of a member that is not looking. */
static int meet(struct link_ucx_group *g, const struct link_patience *patience, struct base_error *e)
{
	struct link_core *c = &g->core;
	bool told = false;
	uint32_t missing = 0;
	for (uint32_t i = 0; i < c->group.members; i++) {
		if (c->peers[i].fd >= 0)
			send_piece(g, i, LINK_UCX_READY, 0, 0, NULL, 0);
	}
	for (;;) {
		bool moved = turn(g);
		int r = look_at_peers(g, &told, &missing, e);
		if (r)
			return r < 0 ? r : 0;
		if (base_clock_now_ns() >= patience->deadline_ns)
			return base_error_set(e, -ETIMEDOUT,
				"link: member %u says hello over its socket, but its data connection did not come "
				"about "
				"before the deadline: is a firewall between them?",
				missing);
		if ((r = link_socket_look(patience, e)))
			return r;
		if (!moved && arm(c)) {
			int ms = link_socket_patience_ms(patience);
			link_core_poll(c, ms < 0 || ms > 100 ? 100 : ms);
		}
	}
}

static int start(struct link_ucx_group *g, const int *fds, const struct link_patience *patience, struct base_error *e)
{
	int r = open_ucx(g, fds, e);
	if (r < 0)
		return r;
	r = link_ucx_hello(g, fds, connect_peer, patience, e);
	if (r < 0)
		return r;
	r = link_core_start(&g->core, fds, e);
	if (r < 0)
		return r;
	if (g->core.piece_bytes > LINK_UCX_PIECE_BYTES)
		g->core.piece_bytes = LINK_UCX_PIECE_BYTES;
	int efd;
	g->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (g->timer_fd < 0 || g->ucp.worker_get_efd(g->worker, &efd) != UCS_OK ||
		link_core_watch(&g->core, g->timer_fd, EPOLLIN) < 0 || link_core_watch(&g->core, efd, EPOLLIN) < 0)
		return base_error_set(e, -EIO, "link: UCX gives no event fd");
	r = meet(g, patience, e);
	if (r == 0 && (r = link_ucx_guard(g->port, NULL, 0)) < 0)
		base_error_set(e, r, "link: UCX's port %u cannot be closed: %s", g->port, strerrordesc_np(-r));
	return r;
}

static const struct link_core_engine engine = {
	.pump = pump,
	.available = available,
	.read = read_stream,
	.consume = consume,
	.space = space,
	.write = write_stream,
	.busy = is_busy,
	.settled = settled,
	.drained = drained,
	.arm = arm,
	.disarm = disarm,
	.socket_bytes = socket_bytes,
	.leave = leave,
	.stop = stop,
	.destroy = destroy,
};

static int create(const int *fds, uint32_t members, uint32_t me, uint64_t epoch, size_t ring_bytes,
	const struct link_patience *patience, struct link_group **ret_group, struct base_error *e)
{
	int r = link_core_check(fds, members, me, ring_bytes, &ring_bytes, e);
	if (r < 0)
		return r;
	struct link_ucx_group *g = aligned_alloc(64, base_size_align(sizeof *g, 64));
	if (!g)
		return base_error_set(e, -ENOMEM, "link: no memory for a group");
	memset(g, 0, sizeof *g);
	link_core_init(&g->core, &link_ucx_ops, &engine, members, me, epoch, ring_bytes);
	g->core.whole = false;
	g->timer_fd = -1;
	for (uint32_t i = 0; i < members; i++) {
		g->pairs[i].owner = g;
		if (fds[i] >= 0 && (r = link_socket_tune(fds[i])) < 0) {
			destroy(&g->core);
			return base_error_set(e, r, "link: the connection to member %u: %s", i, strerrordesc_np(-r));
		}
	}
	r = start(g, fds, patience, e);
	if (r < 0) {
		link_core_forget_fds(&g->core);
		destroy(&g->core);
		return r;
	}
	*ret_group = &g->core.group;
	return 0;
}

const struct link_ops link_ucx_ops = {
	.capabilities = {.name = "ucx", .host_memory = true},
	.create = create,
	.close = link_core_close,
	.send = link_core_send,
	.receive = link_core_receive,
	.allreduce = link_core_allreduce,
	.flush = link_core_flush,
	.test = link_core_test,
	.wait = link_core_wait,
	.cancel = link_core_cancel,
	.revoke = link_core_revoke,
	.progress = link_core_progress,
	.event_fd = link_core_event_fd,
	.peek = link_core_peek,
};
