// SPDX-License-Identifier: Apache-2.0
// Admin, health and reflection over a real socket.
#include "tests/lib/testing.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "daemon/rpc/grpc_core.h"
#include "proto/check.h"
#include "proto/grpc/health/v1/health.pb-c.h"
#include "proto/grpc/reflection/v1/reflection.pb-c.h"
#include "proto/thaw/admin/v1/admin.pb-c.h"
#include "proto/thaw/v1/inference.pb-c.h"
#include "tests/unit/rpc/fixture.h"

#define ADMIN "/thaw.admin.v1.Admin/"

static void release(void *m)
{
	protobuf_c_message_free_unpacked(m, NULL);
}

static void admin_tells_about_the_server(void **state)
{
	struct fixture *f = *state;
	struct rpc_client_status s;
	Thaw__Admin__V1__GetServerInfoRequest q = THAW__ADMIN__V1__GET_SERVER_INFO_REQUEST__INIT;
	Thaw__Admin__V1__GetServerInfoReply *m = (Thaw__Admin__V1__GetServerInfoReply *)fixture_call(
		f->client, ADMIN "GetServerInfo", &q.base, &thaw__admin__v1__get_server_info_reply__descriptor, &s);
	assert_non_null(m);
	assert_string_equal(m->version, THAW_VERSION);
	assert_string_equal(m->host, "testhost");
	assert_int_equal(m->pid, getpid());
	assert_int_equal(m->memory_bytes, 4096);
	assert_int_equal(m->epoch, 7);
	assert_true(m->ready);
	release(m);
	Thaw__Admin__V1__GetLoadRequest l = THAW__ADMIN__V1__GET_LOAD_REQUEST__INIT;
	Thaw__Admin__V1__GetLoadReply *load = (Thaw__Admin__V1__GetLoadReply *)fixture_call(
		f->client, ADMIN "GetLoad", &l.base, &thaw__admin__v1__get_load_reply__descriptor, &s);
	assert_int_equal(load->n_models, 1);
	assert_int_equal(load->models[0]->n_ranks, 1);
	assert_string_equal(load->models[0]->ranks[0]->node, "testhost");
	assert_true(load->models[0]->time_to_first_token->p95_seconds == .01);
	release(load);
	Thaw__Admin__V1__GetTopologyRequest t = THAW__ADMIN__V1__GET_TOPOLOGY_REQUEST__INIT;
	Thaw__Admin__V1__GetTopologyReply *topology = (Thaw__Admin__V1__GetTopologyReply *)fixture_call(
		f->client, ADMIN "GetTopology", &t.base, &thaw__admin__v1__get_topology_reply__descriptor, &s);
	assert_int_equal(topology->n_devices, 1);
	assert_string_equal(topology->devices[0]->name, "nvme0n1");
	assert_true(topology->bandwidths->drive_bytes_per_second == 2e9);
	assert_int_equal(topology->n_machines, 1); // this daemon coordinates nothing
	assert_string_equal(topology->cluster, "");
	assert_string_equal(topology->machines[0]->name, "");
	assert_string_equal(topology->machines[0]->host, "testhost");
	assert_false(topology->machines[0]->coordinator);
	assert_int_equal(topology->machines[0]->n_devices, 1);
	release(topology);
}

static void admin_shows_and_plans_placements(void **state)
{
	struct fixture *f = *state;
	struct rpc_client_status s;
	Thaw__Admin__V1__GetPlacementRequest q = THAW__ADMIN__V1__GET_PLACEMENT_REQUEST__INIT;
	Thaw__Admin__V1__GetPlacementReply *m = (Thaw__Admin__V1__GetPlacementReply *)fixture_call(
		f->client, ADMIN "GetPlacement", &q.base, &thaw__admin__v1__get_placement_reply__descriptor, &s);
	assert_int_equal(m->n_placements, 1);
	assert_int_equal(m->placements[0]->shards[0]->cold_bytes, 40);
	assert_int_equal(m->placements[0]->shards[0]->last_layer, 3);
	assert_string_equal(m->placements[0]->shards[0]->engine, "uring");
	release(m);
	Thaw__Admin__V1__PlanPlacementRequest p = THAW__ADMIN__V1__PLAN_PLACEMENT_REQUEST__INIT;
	p.path = (char *)"/models/a.gguf";
	p.weights_bytes = 77;
	Thaw__Admin__V1__PlanPlacementReply *plan = (Thaw__Admin__V1__PlanPlacementReply *)fixture_call(
		f->client, ADMIN "PlanPlacement", &p.base, &thaw__admin__v1__plan_placement_reply__descriptor, &s);
	assert_int_equal(plan->placement->plan->weights_bytes, 77);
	assert_string_equal(plan->placement->explanation, "an explanation\n");
	release(plan);
	atomic_store(&f->fake->plan_error, -ENOMEM);
	assert_null(fixture_call(
		f->client, ADMIN "PlanPlacement", &p.base, &thaw__admin__v1__plan_placement_reply__descriptor, &s));
	assert_int_equal(s.code, GRPC_STATUS_FAILED_PRECONDITION);
	assert_non_null(strstr(s.message, "12 bytes short"));
	atomic_store(&f->fake->plan_error, -EINVAL);
	assert_null(fixture_call(
		f->client, ADMIN "PlanPlacement", &p.base, &thaw__admin__v1__plan_placement_reply__descriptor, &s));
	assert_int_equal(s.code, GRPC_STATUS_INVALID_ARGUMENT);
	assert_string_equal(s.field, "path");
	p.device_map = (char *)"diagonal";
	assert_null(fixture_call(
		f->client, ADMIN "PlanPlacement", &p.base, &thaw__admin__v1__plan_placement_reply__descriptor, &s));
	assert_int_equal(s.code, GRPC_STATUS_INVALID_ARGUMENT);
	assert_string_equal(s.field, "device_map");
	p.path = (char *)"relative.gguf";
	assert_null(fixture_call(
		f->client, ADMIN "PlanPlacement", &p.base, &thaw__admin__v1__plan_placement_reply__descriptor, &s));
	assert_string_equal(s.field, "path");
}

static void load_reports_progress_until_ready_or_failed(void **state)
{
	struct fixture *f = *state;
	struct rpc_client_status s;
	Thaw__Admin__V1__LoadModelRequest q = THAW__ADMIN__V1__LOAD_MODEL_REQUEST__INIT;
	q.path = (char *)"/models/fake.gguf"; // its name is "fake"
	atomic_store(&f->fake->phase, SERVER_PHASE_PACK);
	struct rpc_client_stream *stream = fixture_stream(f->client, ADMIN "LoadModel", &q.base, FIXTURE_TIMEOUT_NS);
	const ProtobufCMessageDescriptor *d = &thaw__admin__v1__load_model_progress__descriptor;
	Thaw__Admin__V1__LoadModelProgress *m = (Thaw__Admin__V1__LoadModelProgress *)fixture_next(stream, d, &s);
	assert_string_equal(m->phase, "pack");
	release(m);
	atomic_store(&f->fake->phase, SERVER_PHASE_READY);
	m = (Thaw__Admin__V1__LoadModelProgress *)fixture_next(stream, d, &s);
	assert_string_equal(m->phase, "ready");
	release(m);
	assert_null(fixture_next(stream, d, &s));
	assert_int_equal(s.code, 0);
	rpc_client_stream_close(stream);

	atomic_store(&f->fake->phase, SERVER_PHASE_FAILED);
	stream = fixture_stream(f->client, ADMIN "LoadModel", &q.base, FIXTURE_TIMEOUT_NS);
	assert_null(fixture_next(stream, d, &s));
	assert_int_equal(s.code, GRPC_STATUS_DATA_LOSS);
	assert_non_null(strstr(s.message, "truncated"));
	rpc_client_stream_close(stream);

	static const struct {
		int error, code;
	} cases[] = {{-ENOENT, GRPC_STATUS_NOT_FOUND}, {-EEXIST, GRPC_STATUS_ALREADY_EXISTS},
		{-ENOMEM, GRPC_STATUS_FAILED_PRECONDITION}, {-EINVAL, GRPC_STATUS_INVALID_ARGUMENT}};
	for (size_t i = 0; i < base_array_size(cases); i++) {
		atomic_store(&f->fake->load_error, cases[i].error);
		stream = fixture_stream(f->client, ADMIN "LoadModel", &q.base, FIXTURE_TIMEOUT_NS);
		assert_null(fixture_next(stream, d, &s));
		assert_int_equal(s.code, cases[i].code);
		rpc_client_stream_close(stream);
	}
	Thaw__Admin__V1__UnloadModelRequest u = THAW__ADMIN__V1__UNLOAD_MODEL_REQUEST__INIT;
	u.name = (char *)"none";
	assert_null(fixture_call(
		f->client, ADMIN "UnloadModel", &u.base, &thaw__admin__v1__unload_model_reply__descriptor, &s));
	assert_int_equal(s.code, GRPC_STATUS_NOT_FOUND);
}

static void drain_waits_for_what_runs(void **state)
{
	struct fixture *f = *state;
	struct rpc_client_status s;
	Thaw__Admin__V1__DrainRequest q = THAW__ADMIN__V1__DRAIN_REQUEST__INIT;
	Thaw__Admin__V1__UndrainRequest u = THAW__ADMIN__V1__UNDRAIN_REQUEST__INIT;
	const ProtobufCMessageDescriptor *d = &thaw__admin__v1__drain_progress__descriptor;
	Thaw__V1__GenerateRequest g = THAW__V1__GENERATE_REQUEST__INIT;
	Thaw__V1__Prompt p = THAW__V1__PROMPT__INIT;
	p.source_case = THAW__V1__PROMPT__SOURCE_TEXT;
	p.text = (char *)"x";
	g.prompt = &p;
	atomic_store(&f->fake->hold, true);
	struct rpc_client_stream *work =
		fixture_stream(f->client, "/thaw.v1.Inference/GenerateStream", &g.base, FIXTURE_TIMEOUT_NS);
	assert_true(fixture_wait(&f->fake->submitted, 1));
	struct rpc_client_stream *stream = fixture_stream(f->client, ADMIN "Drain", &q.base, FIXTURE_TIMEOUT_NS);
	for (uint32_t running = 1; running < 2; running--) { // one, then none
		Thaw__Admin__V1__DrainProgress *m = (Thaw__Admin__V1__DrainProgress *)fixture_next(stream, d, &s);
		assert_int_equal(m->running, running);
		release(m);
		atomic_store(&f->fake->hold, false);
	}
	rpc_client_stream_close(work);
	assert_null(fixture_next(stream, d, &s));
	assert_int_equal(s.code, 0);
	rpc_client_stream_close(stream);
	assert_true(atomic_load(&f->fake->draining));
	release(fixture_call(f->client, ADMIN "Undrain", &u.base, &thaw__admin__v1__undrain_reply__descriptor, &s));
	assert_int_equal(s.code, 0);
	assert_false(atomic_load(&f->fake->draining));
}

static void events_are_followed(void **state)
{
	struct fixture *f = *state;
	struct rpc_client_status s;
	Thaw__Admin__V1__WatchEventsRequest q = THAW__ADMIN__V1__WATCH_EVENTS_REQUEST__INIT;
	const ProtobufCMessageDescriptor *d = &thaw__admin__v1__event__descriptor;
	server_emit_event(f->daemon, "info", "loaded", "fake", "one");
	server_emit_event(f->daemon, "error", "rank_lost", "fake", "two");
	q.after = 1;
	struct rpc_client_stream *stream = fixture_stream(f->client, ADMIN "WatchEvents", &q.base, FIXTURE_TIMEOUT_NS);
	Thaw__Admin__V1__Event *m = (Thaw__Admin__V1__Event *)fixture_next(stream, d, &s);
	assert_int_equal(m->sequence, 2);
	assert_string_equal(m->kind, "rank_lost");
	release(m);
	server_emit_event(f->daemon, "info", "restarted", "fake", "three");
	m = (Thaw__Admin__V1__Event *)fixture_next(stream, d, &s);
	assert_string_equal(m->text, "three");
	release(m);
	rpc_client_stream_close(stream);
	q.after = 0;
	q.no_wait = true;
	uint32_t count = 0;
	stream = fixture_stream(f->client, ADMIN "WatchEvents", &q.base, FIXTURE_TIMEOUT_NS);
	for (; (m = (Thaw__Admin__V1__Event *)fixture_next(stream, d, &s)); count++)
		release(m);
	assert_int_equal(count, 3);
	assert_int_equal(s.code, 0);
	rpc_client_stream_close(stream);
}

/* The whole file, its text in *ret; free() it. */
static void fetch_trace(struct fixture *f, char **ret_text)
{
	struct rpc_client_status s;
	Thaw__Admin__V1__StopTraceRequest q = THAW__ADMIN__V1__STOP_TRACE_REQUEST__INIT;
	size_t bytes = 0, chunks = 0;
	char *text = calloc(1, 4 << 20);
	struct rpc_client_stream *stream = fixture_stream(f->client, ADMIN "StopTrace", &q.base, FIXTURE_TIMEOUT_NS);
	for (Thaw__Admin__V1__TraceChunk *m; (m = (Thaw__Admin__V1__TraceChunk *)fixture_next(
						      stream, &thaw__admin__v1__trace_chunk__descriptor, &s));
		chunks++) {
		assert_true(bytes + m->data.len < 4 << 20);
		memcpy(text + bytes, m->data.data, m->data.len);
		bytes += m->data.len;
		release(m);
	}
	assert_int_equal(s.code, 0);
	assert_true(chunks > 5 && strlen(text) == bytes);
	rpc_client_stream_close(stream);
	*ret_text = text;
}

static void a_trace_is_a_file(void **state)
{
	struct fixture *f = *state;
	struct rpc_client_status s;
	Thaw__Admin__V1__StartTraceRequest q = THAW__ADMIN__V1__START_TRACE_REQUEST__INIT;
	const ProtobufCMessageDescriptor *d = &thaw__admin__v1__start_trace_reply__descriptor;
	q.duration_ns = 1ull << 60;
	assert_null(fixture_call(f->client, ADMIN "StartTrace", &q.base, d, &s));
	assert_string_equal(s.field, "duration_ns");
	q.duration_ns = 0;
	release(fixture_call(f->client, ADMIN "StartTrace", &q.base, d, &s));
	assert_int_equal(s.code, 0);
	char *text;
	fetch_trace(f, &text);
	static const char *const wanted[] = {
		"\"model\":\"a\\u0022b\\u005cc\\u000a\\ufffd\"", // escaped
		"\"rank 0: stage 0 on \\u0009\\u0022\"",
		"\"labels\":\"3 older spans lost, aligned by wall clocks\"",
		"\"name\":\"matmul\",\"cat\":\"compute\",\"ts\":-0.500,\"dur\":2.000,\"args\":{\"layer\":7}}",
		"\"tid\":257,\"name\":\"read\",\"cat\":\"drive\",\"ts\":2.500,\"dur\":2.500,\"args\":{\"bytes\":4096}}",
		"\"args\":{\"name\":\"drive 2\"}}", // the second read overlaps with it
		("\"tid\":258,\"name\":\"read\",\"cat\":\"drive\",\"ts\":3.500,\"dur\":4.000,\"args\":{\"bytes\":"
		 "1048576,\"layer\":1}}"),
		"\"args\":{\"bytes\":64,\"peer\":\"coordinator\"}}",
		"],\"spans_left_out\":0}\n",
	};
	for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++)
		assert_true(strstr(text, wanted[i]) != NULL);
	free(text);
}

static void the_log_level_is_set(void **state)
{
	struct fixture *f = *state;
	struct rpc_client_status s;
	Thaw__Admin__V1__SetLogLevelRequest q = THAW__ADMIN__V1__SET_LOG_LEVEL_REQUEST__INIT;
	q.level = (char *)"loud";
	assert_null(fixture_call(
		f->client, ADMIN "SetLogLevel", &q.base, &thaw__admin__v1__set_log_level_reply__descriptor, &s));
	assert_string_equal(s.field, "level");
	q.level = (char *)"warning";
	Thaw__Admin__V1__SetLogLevelReply *m = (Thaw__Admin__V1__SetLogLevelReply *)fixture_call(
		f->client, ADMIN "SetLogLevel", &q.base, &thaw__admin__v1__set_log_level_reply__descriptor, &s);
	assert_string_equal(m->previous, "error");
	release(m);
	assert_int_equal(atomic_load(&f->log.level), BASE_LOG_WARNING);
}

static void the_configuration_is_read_again(void **state)
{
	struct fixture *f = *state;
	struct rpc_client_status s;
	Thaw__Admin__V1__ReloadConfigRequest q = THAW__ADMIN__V1__RELOAD_CONFIG_REQUEST__INIT;
	Thaw__Admin__V1__ReloadConfigReply *m = (Thaw__Admin__V1__ReloadConfigReply *)fixture_call(
		f->client, ADMIN "ReloadConfig", &q.base, &thaw__admin__v1__reload_config_reply__descriptor, &s);
	assert_string_equal(m->text, "done");
	release(m);
	atomic_store(&f->fake->load_error, -EINVAL);
	assert_null(fixture_call(
		f->client, ADMIN "ReloadConfig", &q.base, &thaw__admin__v1__reload_config_reply__descriptor, &s));
	assert_int_equal(s.code, GRPC_STATUS_INVALID_ARGUMENT);
	assert_non_null(strstr(s.message, "thaw.yaml:3:1"));
}

static int health(struct fixture *f, const char *service, struct rpc_client_status *s)
{
	Grpc__Health__V1__HealthCheckRequest q = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
	q.service = (char *)service;
	Grpc__Health__V1__HealthCheckResponse *m = (Grpc__Health__V1__HealthCheckResponse *)fixture_call(f->client,
		"/grpc.health.v1.Health/Check", &q.base, &grpc__health__v1__health_check_response__descriptor, s);
	int status = m ? (int)m->status : -1;
	release(m);
	return status;
}

#define SERVING GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING
#define NOT_SERVING GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING

static void health_tells_live_from_ready(void **state)
{
	struct fixture *f = *state;
	struct rpc_client_status s;
	atomic_store(&f->fake->submit_error, -EAGAIN); // a full queue is no illness
	assert_int_equal(health(f, "", &s), SERVING);
	assert_int_equal(health(f, "thaw.v1.Inference", &s), SERVING);
	assert_int_equal(health(f, "model/fake", &s), SERVING);
	atomic_store(&f->fake->data_loss, true); // a model that cannot read its weights is
	assert_int_equal(health(f, "model/fake", &s), NOT_SERVING);
	atomic_store(&f->fake->data_loss, false);
	assert_int_equal(health(f, "model/fake", &s), SERVING);
	atomic_store(&f->fake->ready, false);
	atomic_store(&f->fake->phase, SERVER_PHASE_LOAD);
	assert_int_equal(health(f, "", &s), SERVING);
	assert_int_equal(health(f, "thaw.v1.Inference", &s), NOT_SERVING);
	assert_int_equal(health(f, "model/fake", &s), NOT_SERVING);
	assert_int_equal(health(f, "model/other", &s), -1);
	assert_int_equal(s.code, GRPC_STATUS_NOT_FOUND);
}

static void health_watchers_hear_of_changes(void **state)
{
	struct fixture *f = *state;
	struct rpc_client_status s;
	Grpc__Health__V1__HealthCheckRequest q = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
	const ProtobufCMessageDescriptor *d = &grpc__health__v1__health_check_response__descriptor;
	q.service = (char *)"thaw.v1.Inference";
	struct rpc_client_stream *stream =
		fixture_stream(f->client, "/grpc.health.v1.Health/Watch", &q.base, FIXTURE_TIMEOUT_NS);
	static const int want[] = {SERVING, NOT_SERVING, SERVING};
	for (int i = 0; i < 3; i++) {
		atomic_store(&f->fake->draining, i == 1);
		rpc_server_update_health(f->rpc);
		Grpc__Health__V1__HealthCheckResponse *m =
			(Grpc__Health__V1__HealthCheckResponse *)fixture_next(stream, d, &s);
		assert_int_equal(m->status, want[i]);
		release(m);
	}
	rpc_client_stream_close(stream);
}

static Grpc__Reflection__V1__ServerReflectionResponse *reflect(
	struct fixture *f, const char *version, Grpc__Reflection__V1__ServerReflectionRequest *q)
{
	struct rpc_client_status s;
	char method[96];
	snprintf(method, sizeof(method), "/grpc.reflection.%s.ServerReflection/ServerReflectionInfo", version);
	return (Grpc__Reflection__V1__ServerReflectionResponse *)fixture_call(
		f->client, method, &q->base, &grpc__reflection__v1__server_reflection_response__descriptor, &s);
}

static void reflection_lists_and_describes(void **state)
{
	struct fixture *f = *state;
	static const char *const versions[] = {"v1", "v1alpha"};
	for (size_t v = 0; v < 2; v++) {
		Grpc__Reflection__V1__ServerReflectionRequest q = GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__INIT;
		q.message_request_case = GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_LIST_SERVICES;
		q.list_services = (char *)"";
		Grpc__Reflection__V1__ServerReflectionResponse *m = reflect(f, versions[v], &q);
		assert_non_null(m);
		assert_int_equal(m->list_services_response->n_service, 6);
		bool found = false;
		for (size_t i = 0; i < 5; i++)
			found |= strcmp(m->list_services_response->service[i]->name, "thaw.v1.Inference") == 0;
		assert_true(found);
		release(m);
		static const char *const symbols[] = {"thaw.v1.Inference", "thaw.v1.Inference.Generate",
			"thaw.v1.GenerateRequest", "thaw.v1.Priority", "google.rpc.BadRequest.FieldViolation"};
		for (size_t i = 0; i < base_array_size(symbols); i++) {
			q.message_request_case =
				GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_CONTAINING_SYMBOL;
			q.file_containing_symbol = (char *)symbols[i];
			m = reflect(f, versions[v], &q);
			assert_int_equal(m->message_response_case,
				GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_FILE_DESCRIPTOR_RESPONSE);
			assert_int_equal(m->file_descriptor_response->n_file_descriptor_proto, i == 4 ? 2 : 1);
			release(m);
		}
		q.file_containing_symbol = (char *)"thaw.v1.Nothing";
		m = reflect(f, versions[v], &q);
		assert_int_equal(m->error_response->error_code, GRPC_STATUS_NOT_FOUND);
		release(m);
	}
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, fixture_setup, fixture_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(admin_tells_about_the_server),
		CASE(admin_shows_and_plans_placements),
		CASE(load_reports_progress_until_ready_or_failed),
		CASE(drain_waits_for_what_runs),
		CASE(events_are_followed),
		CASE(a_trace_is_a_file),
		CASE(the_log_level_is_set),
		CASE(the_configuration_is_read_again),
		CASE(health_tells_live_from_ready),
		CASE(health_watchers_hear_of_changes),
		CASE(reflection_lists_and_describes),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
