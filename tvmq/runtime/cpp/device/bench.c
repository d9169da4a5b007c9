/* bench: times a network.
 *
 *     ./bench [-t THREADS] [-n RUNS] [NETWORK.so]
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tvmq.h"

static void fail(const char *why) {
  fprintf(stderr, "bench: %s\n", why);
  exit(1);
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* A number of 1 or more. */
static int count_of(const char *option, const char *text) {
  char *end;
  long value = strtol(text, &end, 10);
  if (*end != '\0' || value < 1 || value > 1000000) {
    fprintf(stderr, "bench: -%s needs a number of 1 or more, not '%s'\n", option, text);
    exit(2);
  }
  return (int)value;
}

/* The first line of a file of the kernel, or an empty text. */
static void read_line(const char *path, char *line, int size) {
  line[0] = '\0';
  FILE *file = fopen(path, "r");
  if (file == NULL) return;
  if (fgets(line, size, file) != NULL) line[strcspn(line, "\n")] = '\0';
  fclose(file);
}

/* What makes times of a board wrong without anybody noticing. */
static void print_conditions(const char *when) {
  char temperature[32], megahertz[32], throttled[32];
  read_line("/sys/class/thermal/thermal_zone0/temp", temperature, sizeof(temperature));
  read_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", megahertz, sizeof(megahertz));
  read_line("/sys/devices/platform/soc/soc:firmware/get_throttled", throttled, sizeof(throttled));
  if (temperature[0] == '\0' && megahertz[0] == '\0' && throttled[0] == '\0') return;
  printf("%s:", when);
  if (temperature[0] != '\0') printf("  %.1f degrees C", atof(temperature) / 1000);
  if (megahertz[0] != '\0') printf("  %.0f MHz", atof(megahertz) / 1000);
  if (throttled[0] != '\0') printf("  throttled 0x%lx%s", strtoul(throttled, NULL, 16),
                                  (strtoul(throttled, NULL, 16) & 0xf) != 0 ? ": these times are too slow" : "");
  printf("\n");
}

static void print_governor(void) {
  char governor[32];
  read_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", governor, sizeof(governor));
  if (governor[0] == '\0' || strcmp(governor, "performance") == 0) return;
  printf("the clock changes with the load (governor %s); for steady times:\n", governor);
  printf("    echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor\n");
}

/* The most that was resident; getrusage would count the program that started this one, too. */
static void print_memory(void) {
  FILE *file = fopen("/proc/self/status", "r");
  if (file == NULL) return;
  char line[128];
  long kilobytes;
  while (fgets(line, sizeof(line), file) != NULL) {
    if (sscanf(line, "VmHWM: %ld kB", &kilobytes) == 1) printf("memory %.1f MB at most\n", 1.024e-3 * (double)kilobytes);
  }
  fclose(file);
}

int main(int argc, char **argv) {
  int threads = 0, runs = 100, option;
  while ((option = getopt(argc, argv, "t:n:")) != -1) {
    if (option == 't') threads = count_of("t", optarg);
    if (option == 'n') runs = count_of("n", optarg);
    if (option == '?') {
      fprintf(stderr, "usage: bench [-t THREADS] [-n RUNS] [NETWORK.so]\n");
      return 2;
    }
  }
  const char *path = optind < argc ? argv[optind] : "net.so";
  if (threads > 0 && tvmq_set_threads(threads) != 0) fail(tvmq_last_error());
  tvmq_network *network = tvmq_open(path);
  if (network == NULL) fail(tvmq_last_error());

  /* Zeros: low-bit kernels take the same time for all numbers. */
  int input_count = tvmq_input_count(network), output_count = tvmq_output_count(network);
  const void **inputs = calloc((size_t)input_count, sizeof(*inputs));
  void **outputs = calloc((size_t)output_count, sizeof(*outputs));
  double *seconds = calloc((size_t)runs, sizeof(*seconds));
  if (inputs == NULL || outputs == NULL || seconds == NULL) fail("no memory");
  for (int i = 0; i < input_count; i++) inputs[i] = calloc(1, tvmq_input(network, i)->bytes + 1);
  for (int i = 0; i < output_count; i++) outputs[i] = calloc(1, tvmq_output(network, i)->bytes + 1);

  print_governor();
  print_conditions("before");
  int untimed = runs / 10 + 1;
  for (int i = -untimed; i < runs; i++) {
    double start = now();
    if (tvmq_run(network, inputs, outputs) != 0) fail(tvmq_last_error());
    if (i >= 0) seconds[i] = now() - start;
  }
  print_conditions("after");

  qsort(seconds, (size_t)runs, sizeof(*seconds), ascending);
  double median = (seconds[(runs - 1) / 2] + seconds[runs / 2]) / 2;
  printf("%s for %s, %d runs after %d untimed", path, tvmq_target(network), runs, untimed);
  if (threads > 0) printf(", %d threads", threads);
  printf("\nmedian %.3f ms  fastest %.3f  a quarter below %.3f  three quarters below %.3f  slowest %.3f\n",
         1e3 * median, 1e3 * seconds[0], 1e3 * seconds[runs / 4], 1e3 * seconds[(3 * runs) / 4],
         1e3 * seconds[runs - 1]);
  print_memory();
  tvmq_close(network);
  return 0;
}
