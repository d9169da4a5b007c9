// Runs one compiled kernel once and writes how often each of its blocks ran; see executed.py.
//
// ARGUMENTS.h, written for the kernel, has the number of blocks and the arguments.

#include <tvm/ffi/c_api.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "arguments.h"

extern "C" {
uint64_t tvmq_counts[BLOCKS];
uint64_t tvmq_saved;

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

int main() {
  if (&__TVMBackendParallelLaunch != nullptr) __TVMBackendParallelLaunch = ParallelLaunch;
  if (&__TVMBackendAllocWorkspace != nullptr) __TVMBackendAllocWorkspace = AllocWorkspace;
  if (&__TVMBackendFreeWorkspace != nullptr) __TVMBackendFreeWorkspace = FreeWorkspace;

  constexpr int kCount = sizeof(ARGUMENTS) / sizeof(ARGUMENTS[0]);
  static DLTensor tensors[kCount];
  static TVMFFIAny values[kCount];
  for (int i = 0; i < kCount; ++i) {
    Argument& argument = ARGUMENTS[i];
    size_t size = argument.bits / 8;
    for (int axis = 0; axis < argument.ndim; ++axis) size *= argument.shape[axis];
    void* data = aligned_alloc(64, (size + 63) / 64 * 64);
    Fill(static_cast<unsigned char*>(data), size, argument.code);
    tensors[i].data = data;
    tensors[i].device = {kDLCPU, 0};
    tensors[i].ndim = argument.ndim;
    tensors[i].dtype = {static_cast<uint8_t>(argument.code), static_cast<uint8_t>(argument.bits), 1};
    tensors[i].shape = argument.shape;
    memset(&values[i], 0, sizeof(values[i]));
    values[i].type_index = kTVMFFIDLTensorPtr;
    values[i].v_ptr = &tensors[i];
  }
  TVMFFIAny result;
  memset(&result, 0, sizeof(result));
  if (__tvm_ffi_candidate(nullptr, values, kCount, &result) != 0) return 1;
  return fwrite(tvmq_counts, sizeof(uint64_t), BLOCKS, stdout) == BLOCKS ? 0 : 1;
}
