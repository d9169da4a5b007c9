/* check: runs the self-check's inputs and compares the outputs with what they must be.
 *
 *     ./check [NETWORK.so]
 *
 * Ends with 0 if every value is the right one.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tvmq.h"

static void fail(const char *what, const char *why) {
  fprintf(stderr, "check: %s%s%s\n", what, why[0] == '\0' ? "" : ": ", why);
  exit(1);
}

/* The content of a file of this folder, in new memory. */
static void *read_file(const char *kind, int number, size_t *size) {
  char name[64];
  snprintf(name, sizeof(name), "check-data/%s_%d.bin", kind, number);
  FILE *file = fopen(name, "rb");
  if (file == NULL) fail(name, "cannot be opened; start this program in its own folder");
  fseek(file, 0, SEEK_END);
  *size = (size_t)ftell(file);
  rewind(file);
  void *content = malloc(*size + 1);
  if (content == NULL || fread(content, 1, *size, file) != *size) fail(name, "cannot be read");
  fclose(file);
  return content;
}

static int differs(const tvmq_tensor *tensor, const char *expected, const char *actual, size_t size) {
  if (strcmp(tensor->dtype, "float32") != 0) return memcmp(expected, actual, size) != 0;
  float a, b;
  memcpy(&a, expected, sizeof(a));
  memcpy(&b, actual, sizeof(b));
  return a != b && !(isnan(a) && isnan(b)); /* the two zeros are equal */
}

/* How many values differ. */
static size_t compare(const tvmq_tensor *tensor, const char *expected, const char *actual) {
  size_t count = 1, found = 0;
  for (int i = 0; i < tensor->rank; i++) count *= (size_t)tensor->shape[i];
  size_t size = count == 0 ? 0 : tensor->bytes / count;
  for (size_t i = 0; i < count; i++) found += differs(tensor, expected + i * size, actual + i * size, size);
  if (found > 0) fprintf(stderr, "check: output '%s': %zu of %zu values differ\n", tensor->name, found, count);
  return found;
}

int main(int argc, char **argv) {
  tvmq_network *network = tvmq_open(argc > 1 ? argv[1] : "net.so");
  if (network == NULL) fail(tvmq_last_error(), "");

  int input_count = tvmq_input_count(network), output_count = tvmq_output_count(network);
  const void **inputs = calloc((size_t)input_count, sizeof(*inputs));
  void **outputs = calloc((size_t)output_count, sizeof(*outputs));
  if (inputs == NULL || outputs == NULL) fail("no memory", "");
  for (int i = 0; i < input_count; i++) {
    size_t size;
    inputs[i] = read_file("input", i, &size);
    size_t bytes = tvmq_input(network, i)->bytes;
    if (size != bytes && tvmq_set_batch(network, (int64_t)(size / bytes)) != 0) fail("input", tvmq_last_error());
    if (size != tvmq_input(network, i)->bytes) fail("the files in check-data/ are not of this network", "");
  }
  for (int i = 0; i < output_count; i++) outputs[i] = malloc(tvmq_output(network, i)->bytes + 1);
  if (tvmq_run(network, inputs, outputs) != 0) fail("the run failed", tvmq_last_error());

  size_t found = 0;
  for (int i = 0; i < output_count; i++) {
    size_t size;
    void *expected = read_file("output", i, &size);
    if (size != tvmq_output(network, i)->bytes) fail("the files in check-data/ are not of this network", "");
    found += compare(tvmq_output(network, i), expected, outputs[i]);
  }
  tvmq_close(network);
  if (found > 0) return 1;
  puts("check: passed, every value is the right one");
  return 0;
}
