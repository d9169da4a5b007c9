// Streams that hold base64 text, for tensors inside JSON.  The whole text is converted at once: it is never large here.
#ifndef TVM_SUPPORT_BASE64_H_
#define TVM_SUPPORT_BASE64_H_

#include <tvm/ffi/extra/base64.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "bytes_io.h"

namespace tvm {
namespace support {

class Base64InStream : public Stream {
 public:
  using Stream::Read;
  using Stream::Write;

  explicit Base64InStream(Stream* text) : text_(text) {}

  void InitPosition() {
    std::string encoded;
    char buffer[4096];
    while (size_t count = text_->Read(static_cast<void*>(buffer), sizeof(buffer))) {
      encoded.append(buffer, count);
    }
    decoded_ = ffi::Base64Decode(ffi::String(std::move(encoded)));
    bytes_.emplace(decoded_);
  }
  size_t Read(void* data, size_t size) override { return bytes_.value().Read(data, size); }
  size_t Write(const void*, size_t) override { throw std::logic_error("this stream is read-only"); }

 private:
  Stream* text_;
  ffi::Bytes decoded_;
  std::optional<BytesInStream> bytes_;
};

class Base64OutStream : public Stream {
 public:
  using Stream::Read;
  using Stream::Write;

  explicit Base64OutStream(Stream* text) : text_(text) {}

  size_t Read(void*, size_t) override { throw std::logic_error("this stream is write-only"); }
  size_t Write(const void* data, size_t size) override {
    bytes_.append(static_cast<const char*>(data), size);
    return size;
  }
  void Finish() {
    ffi::String encoded = ffi::Base64Encode(TVMFFIByteArray{bytes_.data(), bytes_.size()});
    text_->Write(static_cast<const void*>(encoded.data()), encoded.size());
    bytes_.clear();
  }

 private:
  Stream* text_;
  std::string bytes_;
};

}  // namespace support
}  // namespace tvm
#endif  // TVM_SUPPORT_BASE64_H_
