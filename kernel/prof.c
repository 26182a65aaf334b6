/*
 * QEMU TCG plugin: counts the instructions that a guest kernel executes until init's first one.
 *
 *   -plugin prof.so,out=FILE,start=ADDR[,wait=FROM-TO...][,spin=LOW-HIGH...]
 *
 * start   start_kernel: from there on, the first instruction at a user address is init's. It ends QEMU.
 * wait    what runs from FROM until TO is a wait for a timer that a KVM guest does not make: counted apart.
 * spin    code at LOW <= address < HIGH only spins until a time has passed: counted apart, with the waits.
 *
 * FILE has one line "total N waits N repeats N", then "COUNT ADDRESS REPEATS FIRST" for each translated block:
 * instructions executed in it outside waits, its address, iterations of its string instructions beyond the
 * first, and the running total (with repeats) when it was first executed.
 *
 * Each instruction counts once; a `rep` one too, and its iterations are in REPEATS: hardware moves a cache line
 * at a time, so they are not like instructions. Run with -icount, under which QEMU starts the block anew for each
 * iteration; they are taken out again where they are seen. qemu-plugin.h is not packaged: what is used is declared here.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef struct qemu_info qemu_info_t;
enum { CB_NO_REGS = 0, MEM_R = 1, MEM_W = 2 };

extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*)(unsigned, void *), int, void *);
extern void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *,
					     void (*)(unsigned, uint32_t, uint64_t, void *), int, int, void *);
extern void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, void *), void *);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *, void *, size_t);

__attribute__((visibility("default"))) int qemu_plugin_version = 4;

/* One per block address; a block that is translated again adds to the same entry. */
struct block {
	uint64_t address, count, repeats, first;
	bool spin;
	struct block *next;
};

/* One per translation: its length may differ from that of the last one. */
struct translation {
	struct block *block;
	unsigned length;
};

enum { BUCKETS = 1 << 16, MAX_WAITS = 16, MAX_SPINS = 32 };
static const uint64_t USER_END = 1ull << 47;
static struct block *blocks[BUCKETS];
static uint64_t total, waits, repeats, start;
static struct { uint64_t from, to; } wait_ranges[MAX_WAITS];
static struct { uint64_t low, high; } spin_ranges[MAX_SPINS];
static int wait_count, spin_count;
static int waiting = -1;
static bool started;
static const char *out = "prof.out";

static void report(void)
{
	FILE *f = fopen(out, "w");

	if (!f) {
		perror(out);
		_exit(1);
	}
	fprintf(f, "total %lu waits %lu repeats %lu\n", total, waits, repeats);
	for (int i = 0; i < BUCKETS; i++)
		for (struct block *b = blocks[i]; b; b = b->next)
			if (b->count)
				fprintf(f, "%lu %lx %lu %lu\n", b->count, b->address, b->repeats, b->first);
	if (fclose(f))
		_exit(1);
}

static void executed(unsigned cpu, void *data)
{
	struct translation *t = data;
	struct block *b = t->block;

	if (b->address == start)
		started = true;
	if (started && b->address < USER_END) {
		if (waiting >= 0) {
			fprintf(stderr, "prof: a wait did not end before init\n");
			_exit(3);
		}
		report();
		_exit(0);
	}
	if (waiting >= 0 && b->address == wait_ranges[waiting].to)
		waiting = -1;
	for (int i = 0; waiting < 0 && i < wait_count; i++)
		if (b->address == wait_ranges[i].from)
			waiting = i;
	if (waiting >= 0 || b->spin) {
		waits += t->length;
		return;
	}
	if (!b->count)
		b->first = total + repeats;
	total += t->length;
	b->count += t->length;
}

static void repeated(unsigned cpu, uint32_t info, uint64_t address, void *data)
{
	struct block *b = data;

	if (waiting >= 0)
		return;
	b->repeats++;
	repeats++;
	b->count--;
	total--;
}

static struct block *find(uint64_t address)
{
	struct block **head = &blocks[(address ^ (address >> 16)) & (BUCKETS - 1)], *b;

	for (b = *head; b; b = b->next)
		if (b->address == address)
			return b;
	b = calloc(1, sizeof(*b));
	b->address = address;
	for (int i = 0; i < spin_count; i++)
		b->spin |= address >= spin_ranges[i].low && address < spin_ranges[i].high;
	b->next = *head;
	return *head = b;
}

/* rep movs and stos are counted by their writes, rep cmps and scas by their reads. */
static int repeat_access(const struct qemu_plugin_insn *insn)
{
	uint8_t code[4] = { 0 }, op;

	qemu_plugin_insn_data(insn, code, sizeof(code));
	if (code[0] != 0xf2 && code[0] != 0xf3)
		return 0;
	op = (code[1] & 0xf0) == 0x40 ? code[2] : code[1];	/* a REX prefix may stand between */
	switch (op) {
	case 0xa4: case 0xa5: case 0xaa: case 0xab:
		return MEM_W;
	case 0xa6: case 0xa7: case 0xae: case 0xaf:
		return MEM_R;
	default:
		return 0;
	}
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	struct translation *t = malloc(sizeof(*t));

	t->block = find(qemu_plugin_tb_vaddr(tb));
	t->length = qemu_plugin_tb_n_insns(tb);
	qemu_plugin_register_vcpu_tb_exec_cb(tb, executed, CB_NO_REGS, t);
	for (unsigned i = 0; i < t->length; i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
		int access = repeat_access(insn);

		if (access)
			qemu_plugin_register_vcpu_mem_cb(insn, repeated, CB_NO_REGS, access, t->block);
	}
}

static void ended(qemu_plugin_id_t id, void *data)
{
	fprintf(stderr, "prof: the guest ended before init ran\n");
	_exit(3);
}

__attribute__((visibility("default")))
int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
	for (int i = 0; i < argc; i++) {
		if (!strncmp(argv[i], "out=", 4))
			out = strdup(argv[i] + 4);
		else if (!strncmp(argv[i], "start=", 6))
			start = strtoull(argv[i] + 6, NULL, 16);
		else if (!strncmp(argv[i], "wait=", 5) && wait_count < MAX_WAITS &&
			 sscanf(argv[i] + 5, "%lx-%lx", &wait_ranges[wait_count].from, &wait_ranges[wait_count].to) == 2)
			wait_count++;
		else if (!strncmp(argv[i], "spin=", 5) && spin_count < MAX_SPINS &&
			 sscanf(argv[i] + 5, "%lx-%lx", &spin_ranges[spin_count].low, &spin_ranges[spin_count].high) == 2)
			spin_count++;
		else
			return -1;
	}
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	qemu_plugin_register_atexit_cb(id, ended, NULL);
	return 0;
}
