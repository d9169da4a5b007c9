// How TVM's runtime lays values out in its binary streams: numbers raw and little-endian, containers with a 64-bit
// length in front.
#ifndef TVM_SUPPORT_SERIALIZER_H_
#define TVM_SUPPORT_SERIALIZER_H_

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/string.h>
#include <tvm/support/io.h>

#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

namespace tvm {
namespace support {

static_assert(TVM_FFI_IO_NO_ENDIAN_SWAP, "big-endian devices are not supported");

template <typename T>
struct Serializer<T, std::enable_if_t<std::is_arithmetic_v<T> || std::is_enum_v<T>>> {
  static constexpr bool enabled = true;
  static void Write(Stream* stream, const T& value) { stream->Write(&value, sizeof(T)); }
  static bool Read(Stream* stream, T* value) { return stream->Read(value, sizeof(T)) == sizeof(T); }
};

template <>
struct Serializer<DLDataType> {
  static constexpr bool enabled = true;
  static void Write(Stream* stream, const DLDataType& dtype) {
    stream->Write(dtype.code);
    stream->Write(dtype.bits);
    stream->Write(dtype.lanes);
  }
  static bool Read(Stream* stream, DLDataType* dtype) {
    return stream->Read(&dtype->code) && stream->Read(&dtype->bits) && stream->Read(&dtype->lanes);
  }
};

template <>
struct Serializer<DLDevice> {
  static constexpr bool enabled = true;
  static void Write(Stream* stream, const DLDevice& device) {
    stream->Write(static_cast<int32_t>(device.device_type));
    stream->Write(device.device_id);
  }
  static bool Read(Stream* stream, DLDevice* device) {
    int32_t type;
    if (!stream->Read(&type) || !stream->Read(&device->device_id)) return false;
    device->device_type = static_cast<DLDeviceType>(type);
    return true;
  }
};

// Text and arrays of any class that has size(), data() or iterators.
namespace details {

inline void WriteText(Stream* stream, const char* data, uint64_t size) {
  stream->Write(size);
  stream->Write(static_cast<const void*>(data), static_cast<size_t>(size));
}

inline bool ReadText(Stream* stream, std::string* text) {
  uint64_t size;
  if (!stream->Read(&size)) return false;
  text->resize(static_cast<size_t>(size));
  return stream->Read(static_cast<void*>(text->data()), text->size()) == text->size();
}

template <typename Sequence>
void WriteSequence(Stream* stream, const Sequence& values) {
  stream->Write(static_cast<uint64_t>(values.size()));
  for (const auto& value : values) stream->Write(value);
}

template <typename T, typename Sequence>
bool ReadSequence(Stream* stream, Sequence* values) {
  uint64_t size;
  if (!stream->Read(&size)) return false;
  for (uint64_t i = 0; i < size; ++i) {
    T value;
    if (!stream->Read(&value)) return false;
    values->push_back(value);
  }
  return true;
}

}  // namespace details

template <>
struct Serializer<std::string> {
  static constexpr bool enabled = true;
  static void Write(Stream* stream, const std::string& text) {
    details::WriteText(stream, text.data(), text.size());
  }
  static bool Read(Stream* stream, std::string* text) { return details::ReadText(stream, text); }
};

template <>
struct Serializer<ffi::String> {
  static constexpr bool enabled = true;
  static void Write(Stream* stream, const ffi::String& text) {
    details::WriteText(stream, text.data(), text.size());
  }
  static bool Read(Stream* stream, ffi::String* text) {
    std::string buffer;
    if (!details::ReadText(stream, &buffer)) return false;
    *text = ffi::String(std::move(buffer));
    return true;
  }
};

template <typename T>
struct Serializer<std::vector<T>> {
  static constexpr bool enabled = true;
  static void Write(Stream* stream, const std::vector<T>& values) {
    details::WriteSequence(stream, values);
  }
  static bool Read(Stream* stream, std::vector<T>* values) {
    values->clear();
    return details::ReadSequence<T>(stream, values);
  }
};

template <typename T>
struct Serializer<ffi::Array<T>> {
  static constexpr bool enabled = true;
  static void Write(Stream* stream, const ffi::Array<T>& values) {
    details::WriteSequence(stream, values);
  }
  static bool Read(Stream* stream, ffi::Array<T>* values) {
    *values = ffi::Array<T>();
    return details::ReadSequence<T>(stream, values);
  }
};

}  // namespace support
}  // namespace tvm
#endif  // TVM_SUPPORT_SERIALIZER_H_
