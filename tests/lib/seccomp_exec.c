// SPDX-License-Identifier: Apache-2.0
// seccomp_exec PROFILE [--without NAME]... -- COMMAND...: runs a command under a container's system call filter, as a
// container runtime does that sets no_new_privs: the OCI form of the JSON, names that libseccomp does not know left
// out. Ends with 125 and a line when the filter cannot be made.
#include <errno.h>
#include <json-c/json.h>
#include <seccomp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FAILED 125
#define MAX_ARGS 6

__attribute__((format(printf, 1, 2), noreturn)) static void fail(const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	fprintf(stderr, "seccomp_exec: ");
	vfprintf(stderr, fmt, ap);
	fputc('\n', stderr);
	va_end(ap);
	exit(FAILED);
}

static struct json_object *member(struct json_object *o, const char *name, enum json_type type)
{
	struct json_object *m;
	if (!json_object_object_get_ex(o, name, &m) || !json_object_is_type(m, type))
		fail("\"%s\" is missing, or of another type", name);
	return m;
}

static uint32_t action(struct json_object *o, const char *name, const char *errno_name)
{
	const char *text = json_object_get_string(member(o, name, json_type_string));
	if (strcmp(text, "SCMP_ACT_ALLOW") == 0)
		return SCMP_ACT_ALLOW;
	if (strcmp(text, "SCMP_ACT_ERRNO") == 0)
		return SCMP_ACT_ERRNO((uint32_t)json_object_get_int(member(o, errno_name, json_type_int)));
	fail("action \"%s\" is not known here", text);
}

static enum scmp_compare comparison(const char *op)
{
	if (strcmp(op, "SCMP_CMP_EQ") == 0)
		return SCMP_CMP_EQ;
	if (strcmp(op, "SCMP_CMP_MASKED_EQ") == 0)
		return SCMP_CMP_MASKED_EQ;
	fail("comparison \"%s\" is not known here", op);
}

static unsigned read_args(struct json_object *rule, struct scmp_arg_cmp *ret_args)
{
	struct json_object *args, *value_two;
	if (!json_object_object_get_ex(rule, "args", &args))
		return 0;
	size_t n = json_object_array_length(args);
	if (n > MAX_ARGS)
		fail("%zu conditions", n);
	for (size_t i = 0; i < n; i++) {
		struct json_object *a = json_object_array_get_idx(args, i);
		ret_args[i] = (struct scmp_arg_cmp){
			.arg = (unsigned)json_object_get_int(member(a, "index", json_type_int)),
			.op = comparison(json_object_get_string(member(a, "op", json_type_string))),
			.datum_a = json_object_get_uint64(member(a, "value", json_type_int)),
			.datum_b = json_object_object_get_ex(a, "valueTwo", &value_two)
					   ? json_object_get_uint64(value_two)
					   : 0,
		};
	}
	return (unsigned)n;
}

static bool left_out(const char *name, char *const *argv)
{
	for (; strcmp(argv[0], "--without") == 0; argv += 2)
		if (strcmp(argv[1], name) == 0)
			return true;
	return false;
}

static void add_rule(scmp_filter_ctx filter, struct json_object *rule, uint32_t standard, char *const *argv)
{
	struct scmp_arg_cmp args[MAX_ARGS];
	unsigned args_count = read_args(rule, args);
	uint32_t what = action(rule, "action", "errnoRet");
	struct json_object *names = member(rule, "names", json_type_array);
	for (size_t i = 0; i < json_object_array_length(names); i++) {
		const char *name = json_object_get_string(json_object_array_get_idx(names, i));
		int number = seccomp_syscall_resolve_name(name);
		if (number == __NR_SCMP_ERROR) {
			fprintf(stderr, "seccomp_exec: libseccomp does not know %s\n", name);
			continue;
		}
		if (what == standard || left_out(name, argv))
			continue;
		int r = seccomp_rule_add_array(filter, what, number, args_count, args);
		if (r < 0)
			fail("rule for %s: %s", name, strerror(-r));
	}
}

int main(int argc, char **argv)
{
	int command = 2;
	while (command + 1 < argc && strcmp(argv[command], "--without") == 0)
		command += 2;
	if (command + 1 >= argc || strcmp(argv[command], "--") != 0) {
		fprintf(stderr, "usage: seccomp_exec PROFILE [--without NAME]... -- COMMAND...\n");
		return FAILED;
	}
	struct json_object *profile = json_object_from_file(argv[1]);
	if (!profile)
		fail("%s", json_util_get_last_err());
	uint32_t standard = action(profile, "defaultAction", "defaultErrnoRet");
	scmp_filter_ctx filter = seccomp_init(standard);
	if (!filter)
		fail("no filter");
	struct json_object *rules = member(profile, "syscalls", json_type_array);
	for (size_t i = 0; i < json_object_array_length(rules); i++)
		add_rule(filter, json_object_array_get_idx(rules, i), standard, argv + 2);
	int r = seccomp_load(filter); // sets no_new_privs
	if (r < 0)
		fail("load: %s", strerror(-r));
	seccomp_release(filter);
	json_object_put(profile);
	execv(argv[command + 1], argv + command + 1);
	fail("%s: %s", argv[command + 1], strerror(errno));
}
