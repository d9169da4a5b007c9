/* tvmq.h: runs a network that tvmq compiled.  Link with -ltvmq.
 *
 *     tvmq_network *network = tvmq_open("net.so");
 *     if (network == NULL) { fprintf(stderr, "%s\n", tvmq_last_error()); return 1; }
 *     const void *inputs[] = {image};
 *     void *outputs[] = {scores};
 *     if (tvmq_run(network, inputs, outputs) != 0) ...
 *     tvmq_close(network);
 *
 * Functions that return int return 0 when all is well, and -1 otherwise.  One network is used by one thread at a time.
 */
#ifndef TVMQ_H_
#define TVMQ_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tvmq_network tvmq_network;

/* An input or output.  The extents of `shape` are in the order of C's arrays; a scalar has rank 0. */
typedef struct {
  const char *name;
  const char *dtype; /* as numpy calls it: "float32", "int8", "uint8", "int32", "int64", ... */
  int rank;
  const int64_t *shape;
  size_t bytes;
} tvmq_tensor;

/* Opens a library; NULL if that fails.  A library that this processor cannot execute is refused here. */
tvmq_network *tvmq_open(const char *library);

/* Frees what tvmq_open returned; NULL is fine. */
void tvmq_close(tvmq_network *network);

/* The name of the target that the library was compiled for, such as "raspberry-pi-4". */
const char *tvmq_target(const tvmq_network *network);

/* Inputs and outputs, from 0; NULL if there is no such one.  They are valid until tvmq_close or tvmq_set_batch. */
int tvmq_input_count(const tvmq_network *network);
int tvmq_output_count(const tvmq_network *network);
const tvmq_tensor *tvmq_input(const tvmq_network *network, int number);
const tvmq_tensor *tvmq_output(const tvmq_network *network, int number);

/* How many samples the next runs take, if the network was compiled for any number of them; 1 after tvmq_open. */
int tvmq_set_batch(tvmq_network *network, int64_t samples);

/* Runs the network: `inputs` and `outputs` have a pointer to the numbers of each tensor, in memory of the caller. */
int tvmq_run(tvmq_network *network, const void *const *inputs, void *const *outputs);

/* Threads of the networks that the calling thread runs, itself included; called before its first run.  By default
 * the environment variable TVM_NUM_THREADS says how many, or there are as many as the machine has processors. */
int tvmq_set_threads(int count);

/* What went wrong in the last call that failed in this thread, in one line; valid until the next call. */
const char *tvmq_last_error(void);

#ifdef __cplusplus
}
#endif
#endif /* TVMQ_H_ */
