/* A QEMU plugin (user mode, plugin API version 1) that counts AArch64 instructions by kind. At each marker, prctl(0x45444745, n), and
 * at the end it writes a line of counts so far: "mark N insns=... ldst=... branch=... simdfp=... fmla=... dot=... mmla=... sve=...".
 *
 *     gcc -O2 -shared -fPIC counter.c -o counter.so
 *     qemu-aarch64 -cpu cortex-a76 -plugin ./counter.so,out=FILE PROGRAM
 *
 * With one thread the counts of a run repeat almost to the instruction; with more they do not (the additions are not atomic, and waiting
 * threads spin). They are counts, not times: a plugin sees no caches, no pipeline and no memory.
 *
 * Debian ships no qemu-plugin.h; what is used here is declared below. QEMU checks the version when it loads the plugin. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef struct {
    const char *target_name;
    struct {
        int min;
        int cur;
    } version;
    bool system_emulation;
    int smp_vcpus;
    int max_vcpus;
} qemu_info_t;

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, void (*callback)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t id,
                                          void (*callback)(qemu_plugin_id_t, unsigned vcpu, int64_t number, uint64_t, uint64_t,
                                                           uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t));
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t id, void (*callback)(qemu_plugin_id_t, void *), void *data);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *block, int operation, void *counter, uint64_t value);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *block, size_t index);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *instruction);

EXPORT int qemu_plugin_version = 1;

enum { PRCTL = 167, MARKER = 0x45444745, INLINE_ADD = 0 };
enum kind { INSNS, LDST, BRANCH, SIMDFP, FMLA, DOT, MMLA, SVE, KINDS };
static const char *const names[KINDS] = {"insns", "ldst", "branch", "simdfp", "fmla", "dot", "mmla", "sve"};

/* An instruction belongs to every kind with a row that it matches: (word & mask) == value. Encodings are those of the Arm ARM (A64). */
static const struct {
    enum kind kind;
    uint32_t mask, value;
} rows[] = {
    {INSNS, 0, 0},
    {LDST, 0x0A000000, 0x08000000},   /* all loads and stores */
    {BRANCH, 0x1C000000, 0x14000000}, /* branches, exceptions, system */
    {SIMDFP, 0x0E000000, 0x0E000000}, /* Advanced SIMD and floating-point data processing */
    {FMLA, 0xBFA0FC00, 0x0E20CC00},   /* vectors of float and double */
    {FMLA, 0xBF80F400, 0x0F801000},   /* the same by element */
    {FMLA, 0xBFE0FC00, 0x0E400C00},   /* vectors of half */
    {FMLA, 0xBFC0F400, 0x0F001000},   /* the same by element */
    {DOT, 0x9FE0FC00, 0x0E809400},    /* SDOT, UDOT */
    {DOT, 0x9FC0F400, 0x0F80E000},    /* the same by element */
    {MMLA, 0xDFE0FC00, 0x4E80A400},   /* SMMLA, UMMLA */
    {MMLA, 0xFFE0FC00, 0x4E80AC00},   /* USMMLA */
    {MMLA, 0xFFE0FC00, 0x6E40EC00},   /* BFMMLA */
    {SVE, 0x1E000000, 0x04000000},    /* all of SVE, counted nowhere else but in insns */
};

static uint64_t counts[KINDS];
static FILE *out;

static void write_counts(const char *label, uint64_t number) {
    fprintf(out, "%s %llu", label, (unsigned long long)number);
    for (int kind = 0; kind < KINDS; kind++)
        fprintf(out, " %s=%llu", names[kind], (unsigned long long)counts[kind]);
    fputc('\n', out);
    fflush(out);
}

/* Once for each translated block: its instructions are sorted now, and running it only adds the sums. */
static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *block) {
    (void)id;
    uint64_t sums[KINDS] = {0};
    size_t length = qemu_plugin_tb_n_insns(block);
    for (size_t i = 0; i < length; i++) {
        uint32_t word;
        memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, i)), sizeof word);
        for (size_t row = 0; row < sizeof rows / sizeof *rows; row++)
            sums[rows[row].kind] += (word & rows[row].mask) == rows[row].value;
    }
    for (int kind = 0; kind < KINDS; kind++)
        if (sums[kind])
            qemu_plugin_register_vcpu_tb_exec_inline(block, INLINE_ADD, &counts[kind], sums[kind]);
}

static void called(qemu_plugin_id_t id, unsigned vcpu, int64_t number, uint64_t first, uint64_t second, uint64_t third,
                   uint64_t fourth, uint64_t fifth, uint64_t sixth, uint64_t seventh, uint64_t eighth) {
    (void)id, (void)vcpu, (void)third, (void)fourth, (void)fifth, (void)sixth, (void)seventh, (void)eighth;
    if (number == PRCTL && first == MARKER)
        write_counts("mark", second);
}

static void ended(qemu_plugin_id_t id, void *data) {
    (void)id, (void)data;
    write_counts("end", 0);
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv) {
    if (strcmp(info->target_name, "aarch64") != 0) {
        fprintf(stderr, "counter: only for aarch64, not %s\n", info->target_name);
        return -1;
    }
    for (int i = 0; i < argc; i++)
        if (strncmp(argv[i], "out=", 4) == 0)
            out = fopen(argv[i] + 4, "w");
    if (!out) {
        fprintf(stderr, "counter: cannot write the file of the argument out=FILE\n");
        return -1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    qemu_plugin_register_atexit_cb(id, ended, NULL);
    return 0;
}
