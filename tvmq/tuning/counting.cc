// Runs one compiled kernel once and writes how often each of its blocks ran; see executed.py.
//
//   program BLOCKS CODExBITSxSIZExSIZE... CODExBITSxSIZE...
//
// There is one word per argument of the kernel: DLPack's numbers of its type, and its shape.

#include <tvm/ffi/c_api.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

extern "C" {
extern uint64_t tvmq_counts[];

int __tvm_ffi_candidate(void* self, const TVMFFIAny* arguments, int32_t count, TVMFFIAny* result);

struct Group {
  void* sync_handle;
  int32_t num_task;
};

// One thread does the work of all.
static int ParallelLaunch(int (*task)(int, Group*, void*), void* data, int) {
  Group group = {nullptr, 1};
  return task(0, &group, data);
}

static void* AllocWorkspace(int, int, uint64_t size, int, int) { return aligned_alloc(64, (size + 63) / 64 * 64); }

static int FreeWorkspace(int, int, void* pointer) {
  free(pointer);
  return 0;
}

// The pointers through which a kernel calls TVM's runtime; a kernel defines those that it uses.
extern int (*__TVMBackendParallelLaunch)(int (*)(int, Group*, void*), void*, int) __attribute__((weak));
extern void* (*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) __attribute__((weak));
extern int (*__TVMBackendFreeWorkspace)(int, int, void*) __attribute__((weak));

int TVMBackendParallelLaunch(int (*task)(int, Group*, void*), void* data, int count) {
  return ParallelLaunch(task, data, count);
}
void* TVMBackendAllocWorkspace(int type, int id, uint64_t size, int code, int bits) {
  return AllocWorkspace(type, id, size, code, bits);
}
int TVMBackendFreeWorkspace(int type, int id, void* pointer) { return FreeWorkspace(type, id, pointer); }

void TVMFFIErrorSetRaisedFromCStrParts(const char*, const char** parts, int32_t count) {
  for (int32_t i = 0; i < count; ++i) fputs(parts[i], stderr);
}
}

// Values as tvmq.tuning.measure has them: zeros where a position is expected, no denormal numbers.
static void Fill(unsigned char* data, size_t size, int code) {
  if (code == kDLFloat) {
    for (size_t i = 0; i < size / 4; ++i) reinterpret_cast<float*>(data)[i] = 0.75f;
  } else {
    uint32_t state = 1;
    for (size_t i = 0; i < size; ++i) data[i] = code == kDLUInt ? (state = state * 1664525u + 1013904223u) >> 24 : 0;
  }
}

// Numbers with an "x" between them; how many there are.
static int Parse(const char* text, int64_t* numbers, int most) {
  int count = 0;
  for (char* end; count < most; text = end + 1) {
    numbers[count++] = strtoll(text, &end, 10);
    if (*end != 'x') break;
  }
  return count;
}

int main(int argc, char** argv) {
  if (&__TVMBackendParallelLaunch != nullptr) __TVMBackendParallelLaunch = ParallelLaunch;
  if (&__TVMBackendAllocWorkspace != nullptr) __TVMBackendAllocWorkspace = AllocWorkspace;
  if (&__TVMBackendFreeWorkspace != nullptr) __TVMBackendFreeWorkspace = FreeWorkspace;

  constexpr int kMost = 64, kAxes = 16;
  static int64_t numbers[kMost][kAxes];
  static DLTensor tensors[kMost];
  static TVMFFIAny values[kMost];
  const size_t blocks = strtoull(argv[1], nullptr, 10);
  const int count = argc - 2 < kMost ? argc - 2 : kMost;
  for (int i = 0; i < count; ++i) {
    const int axes = Parse(argv[i + 2], numbers[i], kAxes) - 2;
    const int code = numbers[i][0], bits = numbers[i][1];
    size_t size = bits / 8;
    for (int axis = 0; axis < axes; ++axis) size *= numbers[i][axis + 2];
    void* data = aligned_alloc(64, (size + 63) / 64 * 64);
    Fill(static_cast<unsigned char*>(data), size, code);
    tensors[i].data = data;
    tensors[i].device = {kDLCPU, 0};
    tensors[i].ndim = axes;
    tensors[i].dtype = {static_cast<uint8_t>(code), static_cast<uint8_t>(bits), 1};
    tensors[i].shape = numbers[i] + 2;
    memset(&values[i], 0, sizeof(values[i]));
    values[i].type_index = kTVMFFIDLTensorPtr;
    values[i].v_ptr = &tensors[i];
  }
  TVMFFIAny result;
  memset(&result, 0, sizeof(result));
  if (__tvm_ffi_candidate(nullptr, values, count, &result) != 0) return 1;
  return fwrite(tvmq_counts, sizeof(uint64_t), blocks, stdout) == blocks ? 0 : 1;
}
