// A plugin of qemu-user: how often every block of guest instructions ran, and its bytes.
//
//     gcc -shared -fPIC -O2 -o block_counts.so block_counts.c
//     qemu-aarch64 -d plugin -plugin ./block_counts.so,out=counts.txt PROGRAM
//
// Writes a line "address count instructions bytes" for every translated block that ran: numbers in hexadecimal, decimal
// and decimal, and bytes in hexadecimal.
// A block is what qemu translates at once: it ends at a branch, at the end of a page or after 512 instructions.
// Counters are plain additions: only programs of one thread are counted exactly.
//
// Debian has qemu with plugins, but no header that describes them; these declarations are of version 1 of the interface
// (qemu 4.2 to 8.2).

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
typedef struct qemu_info_t qemu_info_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };

extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb*);
extern uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb*);
extern struct qemu_plugin_insn* qemu_plugin_tb_get_insn(const struct qemu_plugin_tb*, size_t);
extern const void* qemu_plugin_insn_data(const struct qemu_plugin_insn*);
extern size_t qemu_plugin_insn_size(const struct qemu_plugin_insn*);
extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb*));
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb*, enum qemu_plugin_op, void*, uint64_t);
extern void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, void*), void*);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

struct block {
  struct block* next;
  uint64_t address, count;
  size_t instructions, size;
  unsigned char bytes[];
};

static struct block* blocks;
static char path[4096];

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb* tb) {
  (void)id;
  size_t count = qemu_plugin_tb_n_insns(tb), size = 0;
  for (size_t i = 0; i < count; ++i) size += qemu_plugin_insn_size(qemu_plugin_tb_get_insn(tb, i));
  struct block* block = calloc(1, sizeof(struct block) + size);
  if (block == NULL) abort();
  block->address = qemu_plugin_tb_vaddr(tb);
  block->instructions = count;
  for (size_t i = 0; i < count; ++i) {
    const struct qemu_plugin_insn* instruction = qemu_plugin_tb_get_insn(tb, i);
    memcpy(block->bytes + block->size, qemu_plugin_insn_data(instruction), qemu_plugin_insn_size(instruction));
    block->size += qemu_plugin_insn_size(instruction);
  }
  do {
    block->next = __atomic_load_n(&blocks, __ATOMIC_RELAXED);
  } while (!__sync_bool_compare_and_swap(&blocks, block->next, block));
  qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, &block->count, 1);
}

static void finished(qemu_plugin_id_t id, void* data) {
  (void)id, (void)data;
  FILE* file = fopen(path, "w");
  if (file == NULL) return;
  for (const struct block* block = blocks; block != NULL; block = block->next) {
    if (block->count == 0) continue;
    fprintf(file, "%" PRIx64 " %" PRIu64 " %zu ", block->address, block->count, block->instructions);
    for (size_t i = 0; i < block->size; ++i) fprintf(file, "%02x", block->bytes[i]);
    fputc('\n', file);
  }
  fclose(file);
}

__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t* info, int argc,
                                                              char** argv) {
  (void)info;
  for (int i = 0; i < argc; ++i) {
    if (strncmp(argv[i], "out=", 4) == 0) snprintf(path, sizeof(path), "%s", argv[i] + 4);
  }
  if (path[0] == '\0') {
    fprintf(stderr, "block_counts: give the file to write with out=PATH\n");
    return 1;
  }
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_atexit_cb(id, finished, NULL);
  return 0;
}
