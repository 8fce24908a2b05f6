// SPDX-License-Identifier: Apache-2.0
// topology: of the daemon's machine, at a coordinator of all nodes, or of recorded ones: all of them as a reply of the
// daemon, which is a table, JSON, or a drawing.
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/cleanup.h"
#include "daemon/config_fleet.h"
#include "daemon/ctl/ctl.h"
#include "daemon/machine_message.h"
#include "topology/draw.h"
#include "topology/scan.h"

#define ALL_PAIRS 8u // machines of a file, of which every pair is a link

/* ---- a reply to people ---- */

// "node-a*": the coordinator, as in `nodes`.
static const char *title_of(const Thaw__Admin__V1__Machine *m, char *out, size_t room)
{
	snprintf(out, room, "%s%s", m->name[0] ? m->name : m->host, m->coordinator ? "*" : "");
	return out;
}

static void print_machine(struct ctl *c, const Thaw__Admin__V1__Machine *m)
{
	char a[CTL_SIZE_BYTES], b[CTL_SIZE_BYTES], d[CTL_SIZE_BYTES];
	fprintf(c->out, "%s: %s, %" PRIu32 " package%s, %" PRIu32 " cores, %" PRIu32 " CPUs to use\n",
		m->host[0] ? m->host : m->name, m->cpu_model, m->packages, m->packages == 1 ? "" : "s", m->cores,
		m->cpus);
	fprintf(c->out, "memory: %s in all, %s may be used, %s available now\n", ctl_size(m->memory_bytes, a),
		ctl_size(m->memory_limit_bytes, b), ctl_size(m->memory_available_bytes, d));
	if (m->bandwidths && m->bandwidths->measured_wall_ns)
		fprintf(c->out, "measured: drive %s, memory %s, compute %.1f G multiply-adds/s\n",
			ctl_rate(m->bandwidths->drive_bytes_per_second, a),
			ctl_rate(m->bandwidths->memory_bytes_per_second, b),
			m->bandwidths->compute_macs_per_second / 1e9);
	else
		fprintf(c->out, "measured: nothing yet\n");
}

static bool has_racks(const Thaw__Admin__V1__GetTopologyReply *t)
{
	for (size_t i = 0; i < t->n_machines; i++) {
		if (t->machines[i]->rack[0])
			return true;
	}
	return false;
}

static void print_machines(struct ctl *c, const Thaw__Admin__V1__GetTopologyReply *t)
{
	const struct ctl_column columns[] = {{"NODE", false, false}, {"RACK", false, !has_racks(t)},
		{"STATE", false, false}, {"HOST", false, true}, {"PACKAGES", true, false}, {"CORES", true, false},
		{"CPUS", true, false}, {"INSTALLED", true, false}, {"USABLE", true, false}, {"FREE", true, false},
		{"DRIVE", true, false}, {"MEMORY", true, false}, {"COMPUTE", true, false}, {"CPU", false, false},
		{"DETAIL", false, false}};
	struct ctl_table table;
	char size[CTL_SIZE_BYTES], name[128];
	ctl_table_init(&table, columns, base_array_size(columns));
	for (size_t i = 0; i < t->n_machines; i++) {
		const Thaw__Admin__V1__Machine *m = t->machines[i];
		const Thaw__Admin__V1__Bandwidths *b = m->bandwidths;
		const uint32_t counts[] = {m->packages, m->cores, m->cpus};
		const uint64_t sizes[] = {m->memory_bytes, m->memory_limit_bytes, m->memory_available_bytes};
		ctl_table_cell(&table, "%s", title_of(m, name, sizeof name));
		ctl_table_cell(&table, "%s", m->rack[0] ? m->rack : "-");
		ctl_table_cell(&table, "%s", m->state[0] ? m->state : "-");
		ctl_table_cell(&table, "%s", m->host[0] ? m->host : "-");
		for (size_t k = 0; k < base_array_size(counts); k++) {
			if (counts[k])
				ctl_table_cell(&table, "%" PRIu32, counts[k]);
			else
				ctl_table_cell(&table, "-");
		}
		for (size_t k = 0; k < base_array_size(sizes); k++)
			ctl_table_cell(&table, "%s", ctl_size(sizes[k], size));
		ctl_table_cell(&table, "%s", ctl_rate(b ? b->drive_bytes_per_second : 0, size));
		ctl_table_cell(&table, "%s", ctl_rate(b ? b->memory_bytes_per_second : 0, size));
		if (b && b->compute_macs_per_second > 0)
			ctl_table_cell(&table, "%.0fG", b->compute_macs_per_second / 1e9);
		else
			ctl_table_cell(&table, "-");
		ctl_table_cell(&table, "%s", m->cpu_model[0] ? m->cpu_model : "-");
		ctl_table_cell(&table, "%s", m->why);
	}
	ctl_table_print(&table, c);
}

static void add_parts(struct ctl_table *t, const Thaw__Admin__V1__Machine *m, bool several)
{
	static const char *const kinds[] = {"drive", "gpu", "nic"};
	char size[CTL_SIZE_BYTES], name[128];
	for (size_t i = 0; i < m->n_numa_nodes; i++) {
		const Thaw__Admin__V1__NumaNode *n = m->numa_nodes[i];
		if (several)
			ctl_table_cell(t, "%s", title_of(m, name, sizeof name));
		ctl_table_cell(t, "numa");
		ctl_table_cell(t, "node%" PRIu32, n->os_index);
		ctl_table_cell(t, "%" PRIu32, n->os_index);
		ctl_table_cell(t, "%s", ctl_size(n->memory_bytes, size));
		ctl_table_cell(t, "%" PRIu32, n->cpus);
		ctl_table_cell(t, "-");
		ctl_table_cell(t, "-");
	}
	for (size_t i = 0; i < m->n_devices; i++) {
		const Thaw__Admin__V1__Device *v = m->devices[i];
		if (several)
			ctl_table_cell(t, "%s", title_of(m, name, sizeof name));
		ctl_table_cell(t, "%s", v->kind < base_array_size(kinds) ? kinds[v->kind] : "?");
		ctl_table_cell(t, "%s", v->name);
		if (v->numa_node >= 0)
			ctl_table_cell(t, "%" PRId32, v->numa_node);
		else
			ctl_table_cell(t, "-");
		ctl_table_cell(t, "%s", ctl_size(v->size_bytes, size));
		ctl_table_cell(t, "-");
		ctl_table_cell(t, "%s", v->pci_path[0] ? v->pci_path : "-");
		ctl_table_cell(t, "%s", v->model[0] ? v->model : "-");
	}
}

static void print_topology(struct ctl *c, const void *message)
{
	const Thaw__Admin__V1__GetTopologyReply *t = message;
	static const struct ctl_column columns[] = {{"NODE", false, false}, {"KIND", false, false},
		{"NAME", false, false}, {"NUMA", true, false}, {"SIZE", true, false}, {"CPUS", true, false},
		{"PCI", false, true}, {"MODEL", false, false}};
	struct ctl_table table;
	bool several = t->n_machines > 1;
	if (several) {
		print_machines(c, t);
	} else if (t->n_machines) {
		print_machine(c, t->machines[0]);
	}
	size_t parts = 0;
	ctl_table_init(&table, columns + !several, base_array_size(columns) - !several);
	for (size_t i = 0; i < t->n_machines; i++) {
		add_parts(&table, t->machines[i], several);
		parts += t->machines[i]->n_numa_nodes + t->machines[i]->n_devices;
	}
	if (several && parts)
		fprintf(c->out, "\n");
	if (parts)
		ctl_table_print(&table, c);
	if (t->n_links || t->plan_link)
		fprintf(c->out, "\n");
	if (t->n_links)
		ctl_print_links(c, t->links, t->n_links);
	ctl_print_plan_links(c, t->plan_link, t->plan_links, t->n_plan_links);
}

/* ---- a reply to a drawing ---- */

struct drawing {
	struct topology_draw_machine machines[TOPOLOGY_DRAW_MACHINES];
	struct topology_machine scanned[TOPOLOGY_DRAW_MACHINES];
	struct topology_bandwidths bandwidths[TOPOLOGY_DRAW_MACHINES];
	char notes[TOPOLOGY_DRAW_MACHINES][128];
	uint32_t count;
	struct topology_draw_link links[TOPOLOGY_DRAW_LINKS];
	char labels[TOPOLOGY_DRAW_LINKS][96];
	uint32_t links_count;
};

static int draw_machine(struct drawing *d, const Thaw__Admin__V1__Machine *m, struct base_error *e)
{
	uint32_t i = d->count;
	int status = machine_message_read(m, &d->scanned[i], &d->bandwidths[i], e);
	if (status)
		return status;
	bool said = m->coordinator || m->state[0];
	snprintf(d->notes[i], sizeof d->notes[i], "%s%s%s%s%s%s%s%s", m->rack[0] ? "rack " : "", m->rack,
		m->rack[0] && said ? ", " : "", m->coordinator ? "coordinator" : "",
		m->coordinator && m->state[0] ? ", " : "", m->state, m->why[0] ? ": " : "", m->why);
	d->machines[d->count++] = (struct topology_draw_machine){.machine = &d->scanned[i],
		.name = m->name,
		.note = d->notes[i],
		.bandwidths = m->bandwidths ? &d->bandwidths[i] : NULL};
	return 0;
}

static bool find_machine(const struct drawing *d, const char *name, uint32_t *ret)
{
	for (uint32_t i = 0; i < d->count; i++) {
		if (strcmp(d->machines[i].name, name) == 0) {
			*ret = i;
			return true;
		}
	}
	return false;
}

static void draw_link(struct drawing *d, const Thaw__Admin__V1__NodeLink *l)
{
	struct topology_draw_link *x = &d->links[d->links_count];
	char latency[CTL_SIZE_BYTES], rate[CTL_SIZE_BYTES], *label = d->labels[d->links_count];
	if (!find_machine(d, l->node_a, &x->ends[0]) || !find_machine(d, l->node_b, &x->ends[1]))
		return;
	x->assumed = !(l->bytes_per_second > 0);
	if (x->assumed)
		snprintf(label, sizeof d->labels[0], "%s, not measured", l->class_);
	else
		snprintf(label, sizeof d->labels[0], "%s, %s, %s", l->class_, ctl_seconds(l->latency_ns / 1e9, latency),
			ctl_rate(l->bytes_per_second, rate));
	x->label = label;
	d->links_count++;
}

static int draw(struct ctl *c, const Thaw__Admin__V1__GetTopologyReply *t)
{
	struct base_error e = {0};
	_cleanup_free_ struct drawing *d = calloc(1, sizeof *d);
	char title[160] = "";
	if (!d)
		return ctl_fail(c, CTL_ERROR, "no memory");
	for (size_t i = 0; i < t->n_machines && i < TOPOLOGY_DRAW_MACHINES; i++) {
		if (draw_machine(d, t->machines[i], &e) < 0)
			return ctl_fail(c, CTL_ERROR, "the machines cannot be drawn: %s", base_error_text(&e));
	}
	for (size_t i = 0; i < t->n_links && d->links_count < TOPOLOGY_DRAW_LINKS; i++)
		draw_link(d, t->links[i]);
	if (t->n_machines != 1) {
		size_t n = (size_t)snprintf(title, sizeof title, "%s%.100s%s%zu machines",
			t->cluster[0] ? "cluster " : "", t->cluster, t->cluster[0] ? ": " : "", t->n_machines);
		if (d->links_count)
			snprintf(title + n, sizeof title - n, ", %" PRIu32 " link%s", d->links_count,
				d->links_count == 1 ? "" : "s");
	}
	if (topology_draw_fleet(title, d->machines, (uint32_t)t->n_machines, d->links, d->links_count, c->out) < 0)
		return ctl_fail(c, CTL_ERROR, "no memory");
	return CTL_OK;
}

static int show(struct ctl *c, const Thaw__Admin__V1__GetTopologyReply *t)
{
	if (c->output == CTL_OUTPUT_SVG)
		return draw(c, t);
	if (c->output == CTL_OUTPUT_JSON) {
		struct json_object *o = ctl_json_new();
		ctl_json_merge(o, ctl_json_message(t));
		return ctl_json_print(c, o);
	}
	print_topology(c, t);
	return CTL_OK;
}

/* ---- files ---- */

struct recorded { // a machine and the messages that point into it
	struct topology_machine machine;
	struct topology_bandwidths bandwidths;
	char name[FLEET_NAME_BYTES], rack[FLEET_NAME_BYTES];
	struct machine_message message;
};

struct files {
	struct ctl *c;
	struct config_fleet fleet;
	struct recorded machines[TOPOLOGY_DRAW_MACHINES];
	uint32_t count;
	Thaw__Admin__V1__GetTopologyReply reply;
	Thaw__Admin__V1__Machine *list[TOPOLOGY_DRAW_MACHINES];
	Thaw__Admin__V1__NodeLink links[TOPOLOGY_DRAW_LINKS], *link_list[TOPOLOGY_DRAW_LINKS];
};

// A machine is called as its file, without folder and ending.
static int read_recorded(struct files *f)
{
	const struct ctl_list *list = &f->c->options.topologies;
	struct base_error e = {0};
	static_assert(CTL_MAX_LIST <= TOPOLOGY_DRAW_MACHINES);
	for (uint32_t i = 0; i < list->count; i++) {
		struct recorded *r = &f->machines[f->count++];
		const char *slash = strrchr(list->items[i], '/'), *name = slash ? slash + 1 : list->items[i];
		size_t n = strlen(name);
		n -= n > 4 && strcmp(name + n - 4, ".xml") == 0 ? 4 : 0;
		snprintf(r->name, sizeof r->name, "%.*s", (int)(n < sizeof r->name ? n : sizeof r->name - 1), name);
		int status = topology_scan(list->items[i], &r->machine, &e);
		if (status < 0)
			return ctl_fail(f->c, status == -ENOENT ? CTL_NOT_FOUND : CTL_ERROR, "%s", base_error_text(&e));
	}
	return CTL_OK;
}

// What a machine of the file has beside what was recorded of it: figures, memory, cards.
static void add_figures(const struct files *f, uint32_t first, uint32_t count, struct recorded *r)
{
	struct topology_machine *m = &r->machine;
	bool cards = m->gpus_count == 0;
	for (uint32_t i = first; i < first + count; i++) {
		const struct fleet_device *d = &f->fleet.devices[i];
		r->bandwidths.drive_bytes_per_s += d->bandwidths.drive_bytes_per_s; // it is dealt out in equal parts
		if (!d->card) {
			r->bandwidths.memory_bytes_per_s = d->bandwidths.memory_bytes_per_s;
			r->bandwidths.compute_macs_per_s = d->bandwidths.compute_macs_per_s;
		} else if (cards && m->gpus_count < TOPOLOGY_MAX_GPUS) {
			struct topology_device *gpu = &m->gpus[m->gpus_count++];
			const char *slash = strchr(d->name, '/');
			snprintf(gpu->name, sizeof gpu->name, "%s", slash ? slash + 1 : d->name);
			gpu->numa_node = -1;
			gpu->size_bytes = d->memory_bytes;
		}
	}
}

static int read_fleet(struct files *f)
{
	struct ctl *c = f->c;
	struct base_error e = {0};
	uint32_t all = 0;
	int status = config_fleet_read(c->options.fleet, &f->fleet, &e);
	if (status < 0)
		return ctl_fail(c, status == -ENOENT ? CTL_NOT_FOUND : CTL_ERROR, "%s", base_error_text(&e));
	for (uint32_t i = 0; i < f->fleet.machines_count; i++) {
		const struct config_machine *m = &f->fleet.machines[i];
		struct recorded *first = &f->machines[f->count];
		for (uint32_t k = 0; k < m->count && f->count < TOPOLOGY_DRAW_MACHINES; k++) {
			struct recorded *r = &f->machines[f->count++];
			uint32_t device = m->first_device + k * m->devices;
			if (k)
				r->machine = first->machine;
			else if (m->topology[0] && (status = ctl_fleet_scan(c, m, &r->machine)) != CTL_OK)
				return status;
			snprintf(r->name, sizeof r->name, "%s", f->fleet.devices[device].host);
			snprintf(r->rack, sizeof r->rack, "%s", m->rack);
			if (m->memory_bytes)
				r->machine.memory_limit_bytes = r->machine.memory_available_bytes = m->memory_bytes;
			add_figures(f, device, m->devices, r);
		}
		all += m->count;
	}
	if (all > f->count)
		ctl_say(c, "%s has %" PRIu32 " machines: the first %" PRIu32 " are shown", c->options.fleet, all,
			f->count);
	return CTL_OK;
}

// Of few machines all pairs, of many each with the next one: what joins two is the same for all of their racks.
static void make_links(struct files *f)
{
	for (uint32_t a = 0; a < f->count; a++) {
		for (uint32_t b = a + 1; b < f->count && (f->count <= ALL_PAIRS || b == a + 1); b++) {
			const struct recorded *x = &f->machines[a], *y = &f->machines[b];
			enum fleet_link_class class =
				x->rack[0] && strcmp(x->rack, y->rack) == 0 ? FLEET_LINK_RACK : FLEET_LINK_CLUSTER;
			Thaw__Admin__V1__NodeLink *l = &f->links[f->reply.n_links];
			if (class == FLEET_LINK_RACK && f->fleet.links[class].bytes_per_s <= 0)
				class = FLEET_LINK_CLUSTER; // as plans take it
			thaw__admin__v1__node_link__init(l);
			l->node_a = (char *)x->name;
			l->node_b = (char *)y->name;
			l->class_ = (char *)fleet_link_class_name(class);
			l->latency_ns = f->fleet.links[class].latency_ns;
			l->bytes_per_second = f->fleet.links[class].bytes_per_s;
			f->link_list[f->reply.n_links++] = l;
		}
	}
	f->reply.links = f->link_list;
}

static int show_files(struct ctl *c)
{
	_cleanup_free_ struct files *f = calloc(1, sizeof *f);
	if (!f)
		return ctl_fail(c, CTL_ERROR, "no memory");
	if (c->options.fleet && c->options.topologies.count)
		return ctl_fail(c, CTL_USAGE,
			"--fleet and --topology: one of them (machines of a fleet's file name their own)");
	f->c = c;
	thaw__admin__v1__get_topology_reply__init(&f->reply);
	int r = c->options.fleet ? read_fleet(f) : read_recorded(f);
	for (uint32_t i = 0; i < f->count && r == CTL_OK; i++) {
		struct recorded *x = &f->machines[i];
		machine_message_fill(&x->machine, c->options.fleet ? &x->bandwidths : NULL, &x->message);
		x->message.machine.name = x->name;
		x->message.machine.rack = x->rack;
		f->list[f->reply.n_machines++] = &x->message.machine;
	}
	f->reply.machines = f->list;
	if (r == CTL_OK) {
		machine_message_fill_own(&f->machines[0].machine, &f->machines[0].message, &f->reply);
		if (c->options.fleet)
			make_links(f);
		r = show(c, &f->reply);
	}
	config_fleet_finish(&f->fleet);
	return r;
}

int ctl_verb_topology(struct ctl *c)
{
	Thaw__Admin__V1__GetTopologyRequest request = THAW__ADMIN__V1__GET_TOPOLOGY_REQUEST__INIT;
	Thaw__Admin__V1__GetTopologyReply *reply = NULL;
	if (ctl_offline(c))
		return show_files(c);
	int r = ctl_call(c, "Admin/GetTopology", &request, &thaw__admin__v1__get_topology_reply__descriptor, &reply);
	r = r == CTL_OK ? show(c, reply) : r;
	ctl_free(reply);
	return r;
}
