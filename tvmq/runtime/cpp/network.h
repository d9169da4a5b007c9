// A compiled network, loaded into this process.
#ifndef TVMQ_RUNTIME_NETWORK_H_
#define TVMQ_RUNTIME_NETWORK_H_

#include <tvm/ffi/any.h>
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "description.h"

namespace tvmq {

namespace ffi = tvm::ffi;

// TVM's kernels assume this alignment of every tensor.
inline constexpr size_t kAlignment = 64;

struct AlignedMemory {
  void AllocData(DLTensor* tensor) {
    size_t size = ffi::GetDataSize(*tensor);
    size_t rounded = (size + kAlignment - 1) / kAlignment * kAlignment;
    tensor->data = std::aligned_alloc(kAlignment, rounded == 0 ? kAlignment : rounded);
    if (tensor->data == nullptr) throw std::bad_alloc();
  }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

class Network {
 public:
  explicit Network(const std::string& path) {
    // TVM chooses a loader by the file's name.
    if (path.size() < 3 || path.compare(path.size() - 3, 3, ".so") != 0) {
      throw std::runtime_error("library '" + path + "' is not a .so file");
    }
    // dlopen searches the system's folders when the path has no slash.
    std::string file = path.find('/') == std::string::npos ? "./" + path : path;
    description_ = ReadDescription(file, path);
    ffi::Optional<ffi::Function> load = ffi::Module::LoadFromFile(file)->GetFunction("vm_load_executable", true);
    if (!load.has_value()) throw std::runtime_error("library '" + path + "' holds no compiled network");
    machine_ = load.value()().cast<ffi::Module>();
    constexpr int kPooledAllocator = 2;
    Method("vm_initialization")(static_cast<int>(kDLCPU), 0, kPooledAllocator);
    main_ = Method("main");
  }

  const Description& description() const { return description_; }

  int64_t InputCount() const { return Method("get_function_arity")("main").cast<int64_t>(); }

  ffi::Any Invoke(const std::vector<ffi::Tensor>& inputs) const {
    std::vector<ffi::AnyView> views(inputs.begin(), inputs.end());
    ffi::Any result;
    main_.value().CallPacked(views.data(), static_cast<int32_t>(views.size()), &result);
    return result;
  }

  std::vector<ffi::Tensor> Run(const std::vector<ffi::Tensor>& inputs) const {
    ffi::Any result = Invoke(inputs);
    if (auto tensor = result.as<ffi::Tensor>()) return {*tensor};
    std::vector<ffi::Tensor> outputs;
    for (const ffi::Any& item : result.cast<ffi::Array<ffi::Any>>()) outputs.push_back(item.cast<ffi::Tensor>());
    return outputs;
  }

  ffi::Function Method(const char* name) const {
    ffi::Optional<ffi::Function> method = machine_.value()->GetFunction(name, true);
    if (!method.has_value()) throw std::runtime_error(std::string("the library has no function '") + name + "'");
    return method.value();
  }

 private:
  Description description_;
  ffi::Optional<ffi::Module> machine_;
  ffi::Optional<ffi::Function> main_;
};

// What went wrong, in one line; TVM's messages may go over several.
inline std::string Message(const std::exception& exception) {
  const auto* error = dynamic_cast<const ffi::Error*>(&exception);
  std::string text = error == nullptr ? exception.what() : error->kind() + ": " + error->message();
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

}  // namespace tvmq
#endif  // TVMQ_RUNTIME_NETWORK_H_
