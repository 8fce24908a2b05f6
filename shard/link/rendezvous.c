// SPDX-License-Identifier: Apache-2.0
#include "shard/link/rendezvous.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "shard/link/socket.h"

#define MAGIC "thawlink"
#define VERSION 1u
#define HELLO LINK_RENDEZVOUS_HELLO_BYTES
#define ANSWER LINK_RENDEZVOUS_ANSWER_BYTES
#define PROOF 32u
#define MAX_STRANGERS 32u // accepted, not authenticated
#define HANDSHAKE_NS (2 * BASE_NS_PER_SECOND)
#define ACCEPT_AGAIN_NS (100 * 1000000ull)
#define RETRY_NS (BASE_NS_PER_SECOND / 20)
#define RETRY_MAX_NS (BASE_NS_PER_SECOND / 2)

enum answer_status { ANSWER_OK, ANSWER_EPOCH, ANSWER_MEMBERS, ANSWER_COUNT };

/* connector: WAITING (for its next try) -> CONNECTING -> ANSWERING (sent HELLO) -> DONE_COMING (sent PROOF) ->
 * CONNECTED acceptor:  FREE -> HELLO_COMING -> PROOF_COMING (sent ANSWER) -> CONNECTED, where its fd moves to the list
 * of members Whatever fails goes back to WAITING or FREE. */
enum state { FREE, WAITING, CONNECTING, ANSWER_COMING, DONE_COMING, HELLO_COMING, PROOF_COMING, CONNECTED };

struct connection {
	enum state state;
	int fd;
	uint32_t peer;
	uint64_t deadline_ns; // of the handshake, or when to try again
	uint64_t retry_ns;
	uint8_t in[ANSWER];
	size_t got, want;
	uint8_t said[HELLO + ANSWER]; // both frames, which the proofs are over
	char name[64]; // of the other end
};

struct meeting {
	const struct link_rendezvous_group *group;
	int listen_fd;
	int fds[LINK_MAX_MEMBERS];
	struct connection outgoing[LINK_MAX_MEMBERS]; // to members below me
	struct connection strangers[MAX_STRANGERS];
	uint32_t missing;
	uint32_t refused;
	struct base_error last_refused;
	struct base_error last_tried[LINK_MAX_MEMBERS];
	int fatal; // ends the meeting
	uint64_t accept_after_ns; // not before: there was no descriptor for it
	struct base_error *e;
};

// ---- frames

int link_rendezvous_read_hello(const uint8_t *bytes, struct link_rendezvous_hello *ret_hello, struct base_error *e)
{
	struct base_reader r;
	base_reader_init(&r, bytes, HELLO);
	uint8_t magic[8];
	base_reader_copy(&r, magic, sizeof magic);
	if (memcmp(magic, MAGIC, sizeof magic) != 0)
		return base_error_set(e, -EPROTO, "link: what it says is no hello of a rank");
	uint32_t version = base_reader_u32(&r);
	if (version != VERSION)
		return base_error_set(e, -EPROTO,
			"link: it speaks version %u, this is version %u: run the same build on all hosts", version,
			VERSION);
	ret_hello->members = base_reader_u32(&r);
	ret_hello->from = base_reader_u32(&r);
	ret_hello->to = base_reader_u32(&r);
	ret_hello->epoch = base_reader_u64(&r);
	base_reader_copy(&r, ret_hello->nonce, sizeof ret_hello->nonce);
	return 0;
}

static void write_hello(const struct link_rendezvous_hello *h, uint8_t *out)
{
	struct base_writer w;
	base_writer_init(&w, out, HELLO);
	base_writer_bytes(&w, MAGIC, 8);
	base_writer_u32(&w, VERSION);
	base_writer_u32(&w, h->members);
	base_writer_u32(&w, h->from);
	base_writer_u32(&w, h->to);
	base_writer_u64(&w, h->epoch);
	base_writer_bytes(&w, h->nonce, sizeof h->nonce);
}

int link_rendezvous_read_answer(const uint8_t *bytes, struct link_rendezvous_answer *ret_answer, struct base_error *e)
{
	struct base_reader r;
	base_reader_init(&r, bytes, ANSWER);
	uint32_t magic = base_reader_u32(&r);
	ret_answer->status = base_reader_u32(&r);
	ret_answer->epoch = base_reader_u64(&r);
	base_reader_copy(&r, ret_answer->nonce, sizeof ret_answer->nonce);
	base_reader_copy(&r, ret_answer->proof, sizeof ret_answer->proof);
	if (magic != VERSION || ret_answer->status >= ANSWER_COUNT)
		return base_error_set(e, -EPROTO, "link: what it says is no answer of a rank");
	return 0;
}

/* Without its proof. */
static void write_answer(uint32_t status, uint64_t epoch, const uint8_t *nonce, uint8_t *out)
{
	struct base_writer w;
	base_writer_init(&w, out, ANSWER);
	base_writer_u32(&w, VERSION);
	base_writer_u32(&w, status);
	base_writer_u64(&w, epoch);
	base_writer_bytes(&w, nonce, 32);
}

/* HMAC-SHA256 over a label, so that no proof serves as another, and what both said. */
static int prove(const struct link_rendezvous_group *g, const char *label, const uint8_t *said, size_t n, uint8_t *out)
{
	uint8_t text[16 + HELLO + ANSWER] = {0};
	unsigned length = PROOF;
	snprintf((char *)text, 16, "%s", label);
	memcpy(text + 16, said, n);
	return HMAC(EVP_sha256(), g->secret, sizeof g->secret, text, 16 + n, out, &length) ? 0 : -EIO;
}

static bool proves(
	const struct link_rendezvous_group *g, const char *label, const uint8_t *said, size_t n, const uint8_t *proof)
{
	uint8_t want[PROOF];
	return prove(g, label, said, n, want) == 0 && CRYPTO_memcmp(want, proof, PROOF) == 0;
}

#define SAID_ANSWER (HELLO + ANSWER - PROOF)

// ---- connections

static void drop(struct connection *c, enum state state)
{
	if (c->fd >= 0)
		close(c->fd);
	c->fd = -1;
	c->state = state;
	c->got = 0;
}

/* A connection from outside ends, and its reason is told. */
static void refuse(struct meeting *m, struct connection *c, const struct base_error *why)
{
	m->refused++;
	m->last_refused = *why;
	base_error_prefix(&m->last_refused, "connection from %s", c->name);
	if (m->group->refused)
		m->group->refused(m->group->context, &m->last_refused);
	drop(c, FREE);
}

/* A try to reach a member ends; there will be another. */
static void try_again(struct meeting *m, struct connection *c, const struct base_error *why)
{
	m->last_tried[c->peer] = *why;
	drop(c, WAITING);
	c->retry_ns = c->retry_ns ? c->retry_ns * 2 : RETRY_NS;
	if (c->retry_ns > RETRY_MAX_NS)
		c->retry_ns = RETRY_MAX_NS;
	c->deadline_ns = base_clock_now_ns() + c->retry_ns;
}

static void give_up(struct meeting *m, struct connection *c, const struct base_error *why)
{
	m->fatal = base_error_set(m->e, why->code, "link: member %u at %s: %s", c->peer, c->name, base_error_text(why));
	drop(c, WAITING);
}

static int say(struct connection *c, const uint8_t *bytes, size_t n, struct base_error *e)
{
	ssize_t k = send(c->fd, bytes, n, MSG_NOSIGNAL | MSG_DONTWAIT); // fits a fresh socket
	if (k == (ssize_t)n)
		return 0;
	return base_error_set(e, -ECONNRESET, "link: it closed the connection");
}

static void expect(struct connection *c, enum state state, size_t bytes)
{
	c->state = state;
	c->got = 0;
	c->want = bytes;
}

static void keep(struct meeting *m, struct connection *c, enum state state)
{
	uint32_t peer = c->peer;
	int r = link_socket_tune(c->fd);
	if (r < 0) {
		struct base_error why;
		base_error_set(&why, r, "link: its socket cannot be set up: %s", strerrordesc_np(-r));
		if (state == FREE)
			refuse(m, c, &why);
		else
			try_again(m, c, &why);
		return;
	}
	if (m->fds[peer] >= 0)
		close(m->fds[peer]); // the member began anew, and it proved who it is
	else
		m->missing--;
	m->fds[peer] = base_steal_fd(c->fd);
	c->state = state;
}

// ---- the side that connects

static void begin_connect(struct meeting *m, struct connection *c)
{
	const struct link_rendezvous_member *to = &m->group->list[c->peer];
	struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM}, *a;
	struct base_error why;
	char port[8];
	snprintf(port, sizeof port, "%u", to->port);
	snprintf(c->name, sizeof c->name, "%s:%u", to->address, to->port);
	if (getaddrinfo(to->address, port, &hints, &a) != 0) {
		base_error_set(&why, -EINVAL, "link: that is no IP address");
		give_up(m, c, &why);
		return;
	}
	c->fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int r = c->fd < 0 ? -1 : connect(c->fd, a->ai_addr, a->ai_addrlen);
	freeaddrinfo(a);
	c->state = CONNECTING;
	c->deadline_ns = base_clock_now_ns() + HANDSHAKE_NS;
	if (r < 0 && errno != EINPROGRESS) {
		base_error_set(&why, -errno, "link: %s", strerrordesc_np(errno));
		try_again(m, c, &why);
	}
}

static void connected(struct meeting *m, struct connection *c)
{
	const struct link_rendezvous_group *g = m->group;
	struct base_error why;
	int code = 0;
	socklen_t n = sizeof code;
	struct link_rendezvous_hello h = {.members = g->members, .from = g->me, .to = c->peer, .epoch = g->epoch};
	if (getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &code, &n) < 0 || code) {
		base_error_set(&why, code ? -code : -errno, "link: %s", strerrordesc_np(code ? code : errno));
		try_again(m, c, &why);
		return;
	}
	if (getrandom(h.nonce, sizeof h.nonce, 0) != sizeof h.nonce) {
		base_error_set(&why, -EIO, "link: no random bytes");
		give_up(m, c, &why);
		return;
	}
	write_hello(&h, c->said);
	if (say(c, c->said, HELLO, &why) < 0)
		try_again(m, c, &why);
	else
		expect(c, ANSWER_COMING, ANSWER);
}

static void take_answer(struct meeting *m, struct connection *c)
{
	const struct link_rendezvous_group *g = m->group;
	struct link_rendezvous_answer a;
	struct base_error why;
	uint8_t proof[PROOF];
	if (link_rendezvous_read_answer(c->in, &a, &why) < 0) {
		try_again(m, c, &why); // something else may be in its place until it comes
		return;
	}
	memcpy(c->said + HELLO, c->in, ANSWER);
	if (!proves(g, "answer", c->said, SAID_ANSWER, a.proof)) {
		base_error_set(&why, -EACCES, "link: it does not know this group's secret");
		if (a.epoch == g->epoch)
			give_up(m, c, &why);
		else
			try_again(m, c, &why); // perhaps it is still in the epoch before, with that one's secret
	} else if (a.status == ANSWER_EPOCH) {
		base_error_set(&why, -ESTALE, "link: it is in epoch %llu, this is epoch %llu",
			(unsigned long long)a.epoch, (unsigned long long)g->epoch);
		if (a.epoch > g->epoch)
			give_up(m, c, &why);
		else
			try_again(m, c, &why);
	} else if (a.status != ANSWER_OK) {
		base_error_set(&why, -EPROTO,
			"link: its list of members is another one: it is not member %u of %u there", c->peer,
			g->members);
		give_up(m, c, &why);
	} else if (prove(g, "proof", c->said, sizeof c->said, proof) < 0 || say(c, proof, PROOF, &why) < 0) {
		base_error_set(&why, -ECONNRESET, "link: it closed the connection");
		try_again(m, c, &why);
	} else {
		expect(c, DONE_COMING, PROOF);
	}
}

static void take_done(struct meeting *m, struct connection *c)
{
	struct base_error why;
	if (proves(m->group, "done", c->said, sizeof c->said, c->in)) {
		keep(m, c, CONNECTED);
		return;
	}
	base_error_set(&why, -EPROTO, "link: its last word is no proof");
	try_again(m, c, &why);
}

// ---- the side that accepts

static void take_hello(struct meeting *m, struct connection *c)
{
	const struct link_rendezvous_group *g = m->group;
	struct link_rendezvous_hello h;
	struct base_error why;
	uint8_t nonce[32];
	if (link_rendezvous_read_hello(c->in, &h, &why) < 0) {
		refuse(m, c, &why);
		return;
	}
	enum answer_status status = ANSWER_OK;
	if (h.epoch != g->epoch) {
		status = ANSWER_EPOCH;
		base_error_set(&why, -ESTALE, "link: it is in epoch %llu, this is epoch %llu",
			(unsigned long long)h.epoch, (unsigned long long)g->epoch);
	} else if (h.members != g->members || h.to != g->me || h.from <= g->me || h.from >= g->members) {
		status = ANSWER_MEMBERS;
		base_error_set(&why, -EPROTO,
			"link: it is member %u of %u and looks for member %u, this is member %u of %u", h.from,
			h.members, h.to, g->me, g->members);
	}
	memcpy(c->said, c->in, HELLO);
	if (getrandom(nonce, sizeof nonce, 0) != sizeof nonce) {
		base_error_set(&why, -EIO, "link: no random bytes");
		refuse(m, c, &why);
		return;
	}
	write_answer(status, g->epoch, nonce, c->said + HELLO);
	bool told = prove(g, "answer", c->said, SAID_ANSWER, c->said + SAID_ANSWER) == 0 &&
		    say(c, c->said + HELLO, ANSWER, NULL) == 0;
	if (!told && !status)
		base_error_set(&why, -ECONNRESET, "link: it closed the connection");
	c->peer = h.from;
	if (status || !told)
		refuse(m, c, &why);
	else
		expect(c, PROOF_COMING, PROOF);
}

static void take_proof(struct meeting *m, struct connection *c)
{
	struct base_error why;
	uint8_t done[PROOF];
	if (!proves(m->group, "proof", c->said, sizeof c->said, c->in)) {
		base_error_set(&why, -EACCES, "link: it calls itself member %u and does not know this group's secret",
			c->peer);
		refuse(m, c, &why);
	} else if (prove(m->group, "done", c->said, sizeof c->said, done) < 0 || say(c, done, PROOF, &why) < 0) {
		base_error_set(&why, -ECONNRESET, "link: it closed the connection");
		refuse(m, c, &why);
	} else {
		keep(m, c, FREE);
	}
}

static struct connection *free_stranger(struct meeting *m)
{
	struct connection *oldest = &m->strangers[0];
	for (uint32_t i = 0; i < MAX_STRANGERS; i++) {
		struct connection *c = &m->strangers[i];
		if (c->state == FREE)
			return c;
		if (c->deadline_ns < oldest->deadline_ns)
			oldest = c;
	}
	struct base_error why;
	base_error_set(&why, -ETIMEDOUT, "link: it said too little while %u others came", MAX_STRANGERS);
	refuse(m, oldest, &why);
	return oldest;
}

static void accept_one(struct meeting *m)
{
	struct sockaddr_storage from;
	socklen_t n = sizeof from;
	int fd = accept4(m->listen_fd, (struct sockaddr *)&from, &n, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)) {
		m->refused += !m->refused;
		base_error_set(&m->last_refused, -errno, "connections cannot be accepted: %s", strerrordesc_np(errno));
		m->accept_after_ns = base_clock_now_ns() + ACCEPT_AGAIN_NS; // it is ready all the time
	}
	if (fd < 0)
		return; // else it gave up meanwhile
	struct connection *c = free_stranger(m);
	*c = (struct connection){.fd = fd, .deadline_ns = base_clock_now_ns() + HANDSHAKE_NS};
	char host[48] = "?", port[8] = "?";
	getnameinfo((struct sockaddr *)&from, n, host, sizeof host, port, sizeof port, NI_NUMERICHOST | NI_NUMERICSERV);
	snprintf(c->name, sizeof c->name, "%s:%s", host, port);
	expect(c, HELLO_COMING, HELLO);
}

// ---- the loop

static void read_frame(struct meeting *m, struct connection *c, bool outgoing)
{
	struct base_error why;
	ssize_t n = recv(c->fd, c->in + c->got, c->want - c->got, MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		base_error_set(&why, -ECONNRESET, "link: it closed the connection before its handshake ended");
		if (outgoing)
			try_again(m, c, &why);
		else
			refuse(m, c, &why);
		return;
	}
	c->got += (size_t)n;
	if (c->got < c->want)
		return;
	switch (c->state) {
	case ANSWER_COMING:
		take_answer(m, c);
		break;
	case DONE_COMING:
		take_done(m, c);
		break;
	case HELLO_COMING:
		take_hello(m, c);
		break;
	case PROOF_COMING:
		take_proof(m, c);
		break;
	default:
		break;
	}
}

static void act(struct meeting *m, struct connection *c, bool outgoing, short revents, uint64_t now)
{
	struct base_error why;
	if (c->state == WAITING) {
		if (now >= c->deadline_ns)
			begin_connect(m, c);
		return;
	}
	if (c->state == CONNECTING && revents)
		connected(m, c);
	else if (c->fd >= 0 && revents)
		read_frame(m, c, outgoing);
	if (c->fd < 0 || now < c->deadline_ns)
		return;
	base_error_set(&why, -ETIMEDOUT, "link: it said too little in %llu s", HANDSHAKE_NS / BASE_NS_PER_SECOND);
	if (outgoing)
		try_again(m, c, &why);
	else
		refuse(m, c, &why);
}

static int time_out(struct meeting *m, struct base_error *e)
{
	const struct link_rendezvous_group *g = m->group;
	uint32_t i = 0;
	while (i == g->me || m->fds[i] >= 0)
		i++;
	const struct link_rendezvous_member *who = &g->list[i];
	if (i < g->me) {
		const struct base_error *why = &m->last_tried[i];
		int code = why->code == -EACCES || why->code == -ESTALE ? why->code : -ETIMEDOUT;
		return base_error_set(e, code, "link: no connection to member %u at %s:%u before the deadline: %s", i,
			who->address, who->port, why->code ? why->message : "no answer");
	}
	if (m->refused)
		return base_error_set(e, -ETIMEDOUT,
			"link: member %u (%s) did not come before the deadline; %u connections were refused, the last: "
			"%s",
			i, who->address, m->refused, m->last_refused.message);
	return base_error_set(e, -ETIMEDOUT, "link: member %u (%s) did not come before the deadline", i, who->address);
}

/* -ETIMEDOUT when the deadline has passed, -ECANCELED, 0. */
static int turn(struct meeting *m, int cancel_fd, uint64_t deadline_ns)
{
	struct pollfd p[2 + LINK_MAX_MEMBERS + MAX_STRANGERS];
	const uint32_t me = m->group->me, count = 2 + me + MAX_STRANGERS;
	bool deaf = base_clock_now_ns() < m->accept_after_ns;
	uint64_t next = deaf && m->accept_after_ns < deadline_ns ? m->accept_after_ns : deadline_ns;
	p[0] = (struct pollfd){.fd = cancel_fd, .events = POLLIN};
	p[1] = (struct pollfd){.fd = deaf ? -1 : m->listen_fd, .events = POLLIN};
	for (uint32_t i = 0; i < me + MAX_STRANGERS; i++) {
		const struct connection *c = i < me ? &m->outgoing[i] : &m->strangers[i - me];
		p[2 + i] = (struct pollfd){.fd = c->fd, .events = c->state == CONNECTING ? POLLOUT : POLLIN};
		if ((c->fd >= 0 || c->state == WAITING) && c->deadline_ns < next)
			next = c->deadline_ns;
	}
	const struct link_patience patience = {next, m->group->look, m->group->context};
	int n = poll(p, count, link_socket_patience_ms(&patience));
	if (n < 0 && errno != EINTR)
		return -errno;
	uint64_t now = base_clock_now_ns();
	if (now >= deadline_ns)
		return -ETIMEDOUT;
	if ((m->fatal = link_socket_look(&patience, m->e)))
		return m->fatal;
	if (n > 0 && p[0].revents)
		return -ECANCELED;
	for (uint32_t i = 0; i < me + MAX_STRANGERS && !m->fatal; i++)
		act(m, i < me ? &m->outgoing[i] : &m->strangers[i - me], i<me, n> 0 ? p[2 + i].revents : 0, now);
	if (n > 0 && p[1].revents && !m->fatal)
		accept_one(m);
	return m->fatal;
}

int link_rendezvous_connect(int listen_fd, const struct link_rendezvous_group *g, int cancel_fd, uint64_t deadline_ns,
	int *ret_fds, struct base_error *e)
{
	if (g->members == 0 || g->members > LINK_MAX_MEMBERS || g->me >= g->members || g->epoch == 0)
		return base_error_set(e, -EINVAL, "link: member %u of %u (at most %u) in epoch %llu", g->me, g->members,
			LINK_MAX_MEMBERS, (unsigned long long)g->epoch);
	_cleanup_free_ struct meeting *m = calloc(1, sizeof *m);
	if (!m)
		return base_error_set(e, -ENOMEM, "link: no memory for a meeting of %u members", g->members);
	m->group = g;
	m->e = e;
	m->listen_fd = listen_fd;
	m->missing = g->members - 1;
	for (uint32_t i = 0; i < LINK_MAX_MEMBERS; i++) {
		m->fds[i] = -1;
		m->outgoing[i] = (struct connection){.fd = -1, .peer = i, .state = i < g->me ? WAITING : FREE};
	}
	for (uint32_t i = 0; i < MAX_STRANGERS; i++)
		m->strangers[i].fd = -1;
	int r = 0;
	while (m->missing && !r)
		r = turn(m, cancel_fd, deadline_ns);
	for (uint32_t i = 0; i < g->me; i++)
		drop(&m->outgoing[i], FREE);
	for (uint32_t i = 0; i < MAX_STRANGERS; i++)
		drop(&m->strangers[i], FREE);
	if (r == -ECANCELED)
		base_error_set(e, r, "link: the meeting of epoch %llu was called off", (unsigned long long)g->epoch);
	else if (r == -ETIMEDOUT && !m->fatal)
		r = time_out(m, e);
	else if (r && !m->fatal)
		base_error_set(e, r, "link: waiting for members: %s", strerrordesc_np(-r));
	for (uint32_t i = 0; i < g->members; i++) {
		if (r == 0)
			ret_fds[i] = m->fds[i];
		else if (m->fds[i] >= 0)
			close(m->fds[i]);
	}
	return r;
}

int link_rendezvous_listen(
	const char *address, uint16_t first, uint16_t last, int *ret_fd, uint16_t *ret_port, struct base_error *e)
{
	struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_PASSIVE, .ai_socktype = SOCK_STREAM}, *a;
	if (last < first || (first == 0 && last != 0))
		return base_error_set(e, -EINVAL, "link: ports %u to %u", first, last);
	if (getaddrinfo(address, NULL, &hints, &a) != 0)
		return base_error_set(e, -EINVAL, "link: '%s' is no IP address to listen at", address);
	struct sockaddr_storage at = {0};
	socklen_t n = a->ai_addrlen;
	memcpy(&at, a->ai_addr, n);
	freeaddrinfo(a);
	uint16_t *port = at.ss_family == AF_INET6 ? &((struct sockaddr_in6 *)&at)->sin6_port
						  : &((struct sockaddr_in *)&at)->sin_port;
	_cleanup_close_ int fd = -1;
	int r = -EADDRINUSE;
	for (uint32_t i = first; i <= last && r == -EADDRINUSE; i++) {
		*port = htons((uint16_t)i);
		if (fd >= 0)
			close(fd);
		fd = socket(at.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		r = fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int)) < 0 ||
				    bind(fd, (struct sockaddr *)&at, n) < 0 || listen(fd, LINK_MAX_MEMBERS) < 0
			    ? -errno
			    : 0;
	}
	if (r == 0 && getsockname(fd, (struct sockaddr *)&at, &n) < 0)
		r = -errno;
	if (r < 0)
		return base_error_set(
			e, r, "link: listening at %s, port %u to %u: %s", address, first, last, strerrordesc_np(-r));
	*ret_port = ntohs(*port);
	*ret_fd = base_steal_fd(fd);
	return 0;
}
