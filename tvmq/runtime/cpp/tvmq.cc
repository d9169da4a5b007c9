// The C interface; see tvmq.h.
#pragma GCC visibility push(default)
#include "tvmq.h"
#pragma GCC visibility pop

#include <dlfcn.h>
#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/dtype.h>
#include <tvm/ffi/function.h>

#include <cstring>
#include <deque>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "network.h"

namespace tvm::runtime::threading {
void SetMaxConcurrency(int value);  // of TVM's thread pool, whose header is not in its wheel
}

namespace tvmq {
namespace {

std::string& LastError() {
  static thread_local std::string text;
  return text;
}

// Nothing that is thrown may reach C.
template <typename Result, typename Function>
Result Guarded(Result failed, const Function& function) {
  try {
    return function();
  } catch (const std::exception& error) {
    LastError() = Message(error);
  } catch (...) {
    LastError() = "unknown error";
  }
  return failed;
}

// Networks look up functions of TVM's runtime among everything that the process has loaded for common use.  This
// library is there when a program was linked with it, but not when it was loaded for one user only, as Python does.
void MakeVisible() {
  Dl_info info;
  if (dladdr(reinterpret_cast<void*>(&tvmq_open), &info) == 0) return;
  void* handle = dlopen(info.dli_fname, RTLD_LAZY | RTLD_GLOBAL | RTLD_NOLOAD);
  if (handle != nullptr) dlclose(handle);
}

DLDataType ParseDType(const std::string& name) {
  return name == "bool" ? DLDataType{kDLBool, 8, 1} : ffi::StringToDLDataType(name);
}

}  // namespace
}  // namespace tvmq

struct tvmq_network {
  explicit tvmq_network(const char* path) : network(path) {
    const tvmq::Description& description = network.description();
    if (static_cast<int64_t>(description.inputs.size()) != network.InputCount() || description.outputs.empty()) {
      throw std::runtime_error(std::string("library '") + path +
                               "' does not say what its network takes and gives; compile it with tvmq");
    }
    SetBatch(1);
  }

  bool OpenBatch() const {
    for (const tvmq::Tensor& tensor : network.description().inputs) {
      for (int64_t extent : tensor.shape) {
        if (extent < 0) return true;
      }
    }
    return false;
  }

  void SetBatch(int64_t samples) {
    shapes.clear();
    inputs.clear();
    outputs.clear();
    memory.clear();
    for (const tvmq::Tensor& tensor : network.description().inputs) {
      inputs.push_back(Concrete(tensor, samples));
      memory.push_back(tvmq::ffi::Tensor::FromNDAlloc(tvmq::AlignedMemory(), tvmq::ffi::Shape(shapes.back()),
                                                      tvmq::ParseDType(tensor.dtype), DLDevice{kDLCPU, 0}));
    }
    for (const tvmq::Tensor& tensor : network.description().outputs) outputs.push_back(Concrete(tensor, samples));
  }

  void Run(const void* const* sources, void* const* destinations) {
    for (size_t i = 0; i < inputs.size(); ++i) std::memcpy(memory[i].data_ptr(), sources[i], inputs[i].bytes);
    std::vector<tvmq::ffi::Tensor> results = network.Run(memory);
    if (results.size() != outputs.size()) throw std::runtime_error("the network gave another number of outputs");
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (tvmq::ffi::GetDataSize(results[i]) != outputs[i].bytes) {
        throw std::runtime_error(std::string("output '") + outputs[i].name + "' has another size than was declared");
      }
      const char* data = static_cast<const char*>(results[i].data_ptr()) + results[i].byte_offset();
      std::memcpy(destinations[i], data, outputs[i].bytes);
    }
  }

  tvmq_tensor Concrete(const tvmq::Tensor& tensor, int64_t samples) {
    std::vector<int64_t> shape = tensor.shape;
    DLDataType dtype = tvmq::ParseDType(tensor.dtype);
    size_t bytes = (static_cast<size_t>(dtype.bits) * dtype.lanes + 7) / 8;
    for (int64_t& extent : shape) {
      if (extent < 0) extent = samples;
      bytes *= static_cast<size_t>(extent);
    }
    shapes.push_back(shape);
    const std::vector<int64_t>& kept = shapes.back();
    return {tensor.name.c_str(), tensor.dtype.c_str(), static_cast<int>(kept.size()), kept.data(), bytes};
  }

  tvmq::Network network;
  std::deque<std::vector<int64_t>> shapes;  // a deque: tensors point into it while it grows
  std::vector<tvmq_tensor> inputs;
  std::vector<tvmq_tensor> outputs;
  std::vector<tvmq::ffi::Tensor> memory;  // of the inputs
};

extern "C" {

tvmq_network* tvmq_open(const char* library) {
  return tvmq::Guarded<tvmq_network*>(nullptr, [&] {
    tvmq::MakeVisible();
    return new tvmq_network(library);
  });
}

void tvmq_close(tvmq_network* network) { delete network; }

const char* tvmq_target(const tvmq_network* network) {
  return network->network.description().target.c_str();
}

int tvmq_input_count(const tvmq_network* network) {
  return static_cast<int>(network->inputs.size());
}

int tvmq_output_count(const tvmq_network* network) {
  return static_cast<int>(network->outputs.size());
}

const tvmq_tensor* tvmq_input(const tvmq_network* network, int number) {
  return number < 0 || number >= tvmq_input_count(network) ? nullptr : &network->inputs[number];
}

const tvmq_tensor* tvmq_output(const tvmq_network* network, int number) {
  return number < 0 || number >= tvmq_output_count(network) ? nullptr : &network->outputs[number];
}

int tvmq_set_batch(tvmq_network* network, int64_t samples) {
  return tvmq::Guarded(-1, [&] {
    if (samples < 1) throw std::runtime_error("a batch needs 1 sample or more, not " + std::to_string(samples));
    if (!network->OpenBatch()) throw std::runtime_error("the network was compiled for a fixed number of samples");
    network->SetBatch(samples);
    return 0;
  });
}

int tvmq_run(tvmq_network* network, const void* const* inputs, void* const* outputs) {
  return tvmq::Guarded(-1, [&] {
    network->Run(inputs, outputs);
    return 0;
  });
}

int tvmq_set_threads(int count) {
  return tvmq::Guarded(-1, [&] {
    if (count < 1) throw std::runtime_error("a network needs 1 thread or more, not " + std::to_string(count));
    tvm::runtime::threading::SetMaxConcurrency(count);
    return 0;
  });
}

const char* tvmq_last_error(void) { return tvmq::LastError().c_str(); }

}  // extern "C"
