// Profiler ranges of Nvidia's tools; a device that this runner is for has none.
#ifndef TVM_SUPPORT_CUDA_NVTX_H_
#define TVM_SUPPORT_CUDA_NVTX_H_

#include <string>

namespace tvm {
namespace support {

class NVTXScopedRange {
 public:
  explicit NVTXScopedRange(const std::string&) {}
};

}  // namespace support
}  // namespace tvm
#endif  // TVM_SUPPORT_CUDA_NVTX_H_
