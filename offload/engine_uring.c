// SPDX-License-Identifier: Apache-2.0
// io_uring: one ring, owned by the thread that first reads through it. Completions are handled only when that thread
// asks for them (DEFER_TASKRUN), so the kernel never interrupts the stage thread for a read.
#include "offload/engine.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"

#define RETRIES 8u // of one read that the kernel asks to try again
#define BUFFER_BYTES (1ull << 30) // the most that the kernel registers as one buffer
#define REAP_FAILURES 64u // of the ring itself, while destroy waits for reads

struct op {
	struct offload_read *read;
	uint32_t done_bytes;
	uint32_t tries;
};

struct uring_engine {
	struct offload_engine base;
	struct io_uring ring;
	bool ring_made;
	bool disabled; // until the first submit or reap: that thread becomes the ring's only one
	uint32_t depth;
	uint32_t files_count;
	int *files; // (files_count)
	bool *cached; // (files_count): not O_DIRECT
	bool files_fixed;
	char *buffers;
	uint64_t buffers_bytes;
	uint32_t buffers_fixed; // pieces of BUFFER_BYTES that are registered, 0: none
	struct op *ops; // (depth)
	struct op **spare; // (depth), spare_count of them
	uint32_t spare_count;

	int wake_fd; // eventfd: a read of it is always in the ring, so a write to it ends a wait
	uint64_t wake_value;
	bool wake_armed;
};

static int enable(struct uring_engine *u)
{
	if (!u->disabled)
		return 0;
	// liburing 2.3 declares io_uring_enable_rings, and its shared library lacks it.
	if (syscall(SYS_io_uring_register, u->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0) < 0)
		return -errno;
	u->disabled = false;
	return 0;
}

static struct io_uring_sqe *take_sqe(struct uring_engine *u)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);
	if (!sqe && io_uring_submit(&u->ring) >= 0)
		sqe = io_uring_get_sqe(&u->ring);
	return sqe;
}

static void arm_wake(struct uring_engine *u)
{
	struct io_uring_sqe *sqe = u->wake_armed ? NULL : take_sqe(u);
	if (!sqe)
		return;
	io_uring_prep_read(sqe, u->wake_fd, &u->wake_value, sizeof u->wake_value, 0);
	io_uring_sqe_set_data(sqe, NULL);
	u->wake_armed = true;
}

static bool prepare(struct uring_engine *u, struct op *op)
{
	struct io_uring_sqe *sqe = take_sqe(u);
	if (!sqe)
		return false;
	const struct offload_read *r = op->read;
	char *to = (char *)r->buffer + op->done_bytes;
	uint32_t length = r->length_bytes - op->done_bytes;
	uint64_t offset = r->offset_bytes + op->done_bytes;
	int file = u->files_fixed ? (int)r->file : u->files[r->file];
	// A read that crosses from one registered piece to the next goes unregistered.
	uint64_t at = (uint64_t)((uintptr_t)to - (uintptr_t)u->buffers);
	bool fixed = u->buffers_fixed > 0 && (uintptr_t)to >= (uintptr_t)u->buffers && at < u->buffers_bytes &&
		     length <= u->buffers_bytes - at && at / BUFFER_BYTES == (at + length - 1) / BUFFER_BYTES;
	if (fixed)
		io_uring_prep_read_fixed(sqe, file, to, length, offset, (int)(at / BUFFER_BYTES));
	else
		io_uring_prep_read(sqe, file, to, length, offset);
	if (u->files_fixed)
		sqe->flags |= IOSQE_FIXED_FILE;
	io_uring_sqe_set_data(sqe, op);
	return true;
}

// Takes one completion; true when it ends a read, which then has its result.
static bool complete(struct uring_engine *u, struct op *op, int res)
{
	struct offload_read *r = op->read;
	if ((res == -EINTR || res == -EAGAIN) && op->tries < RETRIES) {
		op->tries++;
		if (prepare(u, op))
			return false;
	}
	if (res > 0) {
		uint32_t left = r->length_bytes - op->done_bytes;
		op->done_bytes += (uint32_t)res < left ? (uint32_t)res : left;
		// Less than asked for: the file ends here, unless it stopped where a direct read may go on.
		if (op->done_bytes < r->length_bytes && res % 4096 == 0 && op->tries < RETRIES) {
			op->tries++;
			if (prepare(u, op))
				return false;
		}
	}
	r->result = res < 0 ? res : (int)op->done_bytes;
	if (u->cached[r->file] && r->result > 0)
		posix_fadvise(u->files[r->file], (off_t)r->offset_bytes, r->length_bytes, POSIX_FADV_DONTNEED);
	u->spare[u->spare_count++] = op;
	return true;
}

// Empties the completion queue into ret_reads.
static uint32_t collect(struct uring_engine *u, struct offload_read **ret_reads, uint32_t max, bool *ret_woken)
{
	uint32_t n = 0;
	struct io_uring_cqe *cqe;
	uint64_t now = base_clock_now_ns();
	while (n < max && io_uring_peek_cqe(&u->ring, &cqe) == 0) {
		struct op *op = io_uring_cqe_get_data(cqe);
		int res = cqe->res;
		io_uring_cqe_seen(&u->ring, cqe);
		if (!op) {
			u->wake_armed = false;
			*ret_woken = true;
			continue;
		}
		struct offload_read *r = op->read;
		if (complete(u, op, res)) {
			r->completed_ns = now;
			ret_reads[n++] = r;
		}
	}
	return n;
}

static int uring_reap(struct offload_engine *base, struct offload_read **ret_reads, uint32_t max, uint64_t timeout_ns)
{
	struct uring_engine *u = (struct uring_engine *)base;
	int enabled = enable(u);
	if (enabled < 0)
		return enabled;
	bool forever = timeout_ns > UINT64_MAX / 4;
	uint64_t until = forever ? UINT64_MAX : base_clock_now_ns() + timeout_ns;
	for (;;) {
		bool woken = false;
		uint32_t n = collect(u, ret_reads, max, &woken);
		arm_wake(u);
		if (n > 0 || woken) {
			if (io_uring_sq_ready(&u->ring) > 0)
				io_uring_submit(&u->ring);
			return (int)n;
		}
		uint64_t now = forever ? 0 : base_clock_now_ns();
		if (now >= until) {
			int r = io_uring_submit_and_get_events(&u->ring);
			n = collect(u, ret_reads, max, &woken);
			return n > 0 || r >= 0 || r == -EINTR ? (int)n : r;
		}
		struct io_uring_cqe *cqe;
		uint64_t left = until - now;
		struct __kernel_timespec ts = {.tv_sec = (long long)(left / BASE_NS_PER_SECOND),
			.tv_nsec = (long long)(left % BASE_NS_PER_SECOND)};
		int r = io_uring_submit_and_wait_timeout(&u->ring, &cqe, 1, forever ? NULL : &ts, NULL);
		if (r < 0 && r != -ETIME && r != -EINTR && io_uring_cq_ready(&u->ring) == 0)
			return r;
	}
}

static int uring_submit(struct offload_engine *base, struct offload_read *const *reads, uint32_t count)
{
	struct uring_engine *u = (struct uring_engine *)base;
	for (uint32_t i = 0; i < count; i++) {
		if (reads[i]->file >= u->files_count)
			return -EBADF;
	}
	int enabled = enable(u);
	if (enabled < 0)
		return enabled;
	uint64_t now = base_clock_now_ns();
	uint32_t n = 0;
	while (n < count && u->spare_count > 0) {
		struct op *op = u->spare[u->spare_count - 1];
		*op = (struct op){.read = reads[n]};
		if (!prepare(u, op))
			break;
		reads[n]->submitted_ns = now;
		u->spare_count--;
		n++;
	}
	// What the kernel does not take now stays in the ring and goes with the next call.
	if (n > 0)
		io_uring_submit(&u->ring);
	return n > 0 || count == 0 ? (int)n : -EAGAIN;
}

static void uring_wake(struct offload_engine *base)
{
	struct uring_engine *u = (struct uring_engine *)base;
	ssize_t n = eventfd_write(u->wake_fd, 1);
	(void)n; // can fail only when the counter is full, and then the waiter is awake
}

// The ring must be empty before its buffers may go: the kernel writes into them.
static void drain(struct uring_engine *u)
{
	uint32_t failures = 0;
	struct offload_read *reads[16];
	while (u->spare_count < u->depth && failures < REAP_FAILURES) {
		if (uring_reap(&u->base, reads, 16, OFFLOAD_ENGINE_FOREVER) < 0)
			failures++;
	}
	if (u->wake_armed) {
		struct io_uring_cqe *cqe;
		uring_wake(&u->base);
		if (io_uring_submit_and_wait(&u->ring, 1) >= 0 && io_uring_peek_cqe(&u->ring, &cqe) == 0)
			io_uring_cqe_seen(&u->ring, cqe);
	}
}

static void uring_destroy(struct offload_engine *base)
{
	if (!base)
		return;
	struct uring_engine *u = (struct uring_engine *)base;
	if (u->ring_made) {
		drain(u);
		if (u->buffers_fixed > 0)
			io_uring_unregister_buffers(&u->ring);
		io_uring_queue_exit(&u->ring);
	}
	if (u->wake_fd >= 0)
		close(u->wake_fd);
	free(u->spare);
	free(u->ops);
	free(u->cached);
	free(u->files);
	free(u);
}

static int make_ring(struct uring_engine *u)
{
	// Best first; older kernels say -EINVAL to flags that they do not know. Disabled, so that the thread that makes
	// the ring need not be the one that uses it.
	static const unsigned flags[] = {
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SUBMIT_ALL |
			IORING_SETUP_R_DISABLED,
		IORING_SETUP_COOP_TASKRUN | IORING_SETUP_SUBMIT_ALL,
		0,
	};
	int r = -EINVAL;
	for (size_t i = 0; r == -EINVAL && i < sizeof flags / sizeof flags[0]; i++) {
		r = io_uring_queue_init(u->depth + 1, &u->ring, flags[i]);
		u->disabled = r == 0 && flags[i] & IORING_SETUP_R_DISABLED;
	}
	u->ring_made = r == 0;
	return r;
}

// Registered buffers spare the kernel looking up the pages of every read. RLIMIT_MEMLOCK may refuse them:
// reads work without, with more CPU time.
static void register_buffers(struct uring_engine *u)
{
	uint64_t pieces = (u->buffers_bytes + BUFFER_BYTES - 1) / BUFFER_BYTES;
	if (!u->buffers || pieces == 0)
		return;
	if (pieces > 1024) {
		u->base.buffers_refused = -E2BIG;
		return;
	}
	struct iovec *v = calloc(pieces, sizeof *v);
	if (!v) {
		u->base.buffers_refused = -ENOMEM;
		return;
	}
	for (uint64_t i = 0; i < pieces; i++) {
		uint64_t at = i * BUFFER_BYTES;
		uint64_t left = u->buffers_bytes - at;
		v[i] = (struct iovec){u->buffers + at, left < BUFFER_BYTES ? left : BUFFER_BYTES};
	}
	u->base.buffers_refused = io_uring_register_buffers(&u->ring, v, (unsigned)pieces);
	u->buffers_fixed = u->base.buffers_refused ? 0 : (uint32_t)pieces;
	free(v);
}

static int take_arrays(struct uring_engine *u, const struct offload_engine_config *config)
{
	u->files = calloc(u->files_count, sizeof *u->files);
	u->cached = calloc(u->files_count, sizeof *u->cached);
	u->ops = calloc(u->depth, sizeof *u->ops);
	u->spare = calloc(u->depth, sizeof(struct op *));
	if (!u->files || !u->cached || !u->ops || !u->spare)
		return -ENOMEM;
	for (uint32_t i = 0; i < u->files_count; i++) {
		u->files[i] = config->files[i];
		int flags = fcntl(u->files[i], F_GETFL);
		u->cached[i] = flags >= 0 && !(flags & O_DIRECT);
	}
	for (uint32_t i = 0; i < u->depth; i++)
		u->spare[u->spare_count++] = &u->ops[i];
	return 0;
}

static int uring_create(
	const struct offload_engine_config *config, struct offload_engine **ret_engine, struct base_error *e)
{
	if (config->depth == 0 || config->depth > OFFLOAD_ENGINE_MAX_DEPTH || config->files_count == 0)
		return base_error_set(e, -EINVAL,
			"io_uring engine: depth %u with %u files: at least 1 of each, depth at most %u", config->depth,
			config->files_count, OFFLOAD_ENGINE_MAX_DEPTH);
	struct uring_engine *u = calloc(1, sizeof *u);
	if (!u)
		return base_error_set(e, -ENOMEM, "io_uring engine: no memory");
	u->base.ops = &offload_engine_uring;
	u->depth = config->depth;
	u->files_count = config->files_count;
	u->buffers = config->buffers;
	u->buffers_bytes = config->buffers_bytes;
	u->wake_fd = -1;
	int r = take_arrays(u, config);
	if (r == 0) {
		u->wake_fd = eventfd(0, EFD_CLOEXEC);
		r = u->wake_fd < 0 ? -errno : 0;
	}
	if (r == 0)
		r = make_ring(u);
	if (r < 0) {
		uring_destroy(&u->base);
		return base_error_set(e, r, "io_uring is refused: %s%s", strerrordesc_np(-r),
			r == -EPERM || r == -EACCES ? " (a seccomp filter, or the sysctl kernel.io_uring_disabled)"
			: r == -ENOSYS              ? " (the kernel is built without it, or a seccomp filter)"
						    : "");
	}
	u->files_fixed = io_uring_register_files(&u->ring, u->files, u->files_count) == 0;
	register_buffers(u);
	*ret_engine = &u->base;
	return 0;
}

const struct offload_engine_ops offload_engine_uring = {
	.name = "uring",
	.create = uring_create,
	.destroy = uring_destroy,
	.submit = uring_submit,
	.reap = uring_reap,
	.wake = uring_wake,
};
