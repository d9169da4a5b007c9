// The binary stream that TVM's runtime reads its bytecode and constants from.  TVM's wheel ships the runtime's sources
// but not this header.
#ifndef TVM_SUPPORT_IO_H_
#define TVM_SUPPORT_IO_H_

#include <tvm/ffi/endian.h>

#include <cstddef>
#include <type_traits>

namespace tvm {
namespace support {

// The byte layout of one type; defined in serializer.h, and by TVM for types of its own.
template <typename T, typename Enable = void>
struct Serializer;

class Stream {
 public:
  virtual ~Stream() = default;

  // Returns the number of bytes that were read.
  virtual size_t Read(void* data, size_t size) = 0;
  // Returns the number of bytes that were written.
  virtual size_t Write(const void* data, size_t size) = 0;

  template <typename T>
  bool Read(T* value) {
    return Serializer<T>::Read(this, value);
  }

  template <typename T>
  void Write(const T& value) {
    Serializer<T>::Write(this, value);
  }

  // Arrays have no length prefix: the caller knows it.
  template <typename T>
  bool ReadArray(T* data, size_t count) {
    for (size_t i = 0; i < count; ++i) {
      if (!Read(data + i)) return false;
    }
    return true;
  }

  template <typename T>
  void WriteArray(const T* data, size_t count) {
    for (size_t i = 0; i < count; ++i) Write(data[i]);
  }
};

}  // namespace support
}  // namespace tvm
#endif  // TVM_SUPPORT_IO_H_
