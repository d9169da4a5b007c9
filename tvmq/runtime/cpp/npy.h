// Reads and writes numpy's .npy files (format versions 1 to 3) as tensors in memory.
#ifndef TVMQ_RUNTIME_NPY_H_
#define TVMQ_RUNTIME_NPY_H_

#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/dtype.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "network.h"

namespace tvmq {

struct NumberFormat {
  const char* descr;  // numpy's name
  DLDataType dtype;
};

inline constexpr NumberFormat kNumberFormats[] = {
    {"<f4", {kDLFloat, 32, 1}}, {"|i1", {kDLInt, 8, 1}},  {"|u1", {kDLUInt, 8, 1}},
    {"<i4", {kDLInt, 32, 1}},   {"<i8", {kDLInt, 64, 1}},
};
inline constexpr char kSupported[] = "float32, int8, uint8, int32 or int64, little-endian";

// The header of a .npy file is a Python dictionary in text; numpy writes it in exactly one style.
class NpyHeader {
 public:
  NpyHeader(const std::string& text, const std::string& path) : text_(text), path_(path) {}

  DLDataType DType() const {
    std::string descr = Quoted(After("'descr':"));
    for (const NumberFormat& format : kNumberFormats) {
      if (descr == format.descr) return format.dtype;
    }
    throw Error("holds numbers of type '" + descr + "'; it must be " + kSupported);
  }

  bool FortranOrder() const { return text_.compare(After("'fortran_order':"), 4, "True") == 0; }

  std::vector<int64_t> Shape() const {
    size_t position = After("'shape':");
    if (text_[position] != '(') throw Error("has a damaged header");
    size_t end = text_.find(')', position);
    if (end == std::string::npos) throw Error("has a damaged header");
    std::vector<int64_t> shape;
    const char* cursor = text_.c_str() + position + 1;
    const char* last = text_.c_str() + end;
    while (cursor < last) {
      char* next = nullptr;
      int64_t extent = std::strtoll(cursor, &next, 10);
      if (next == cursor) break;
      if (extent < 0) throw Error("has a negative extent");
      shape.push_back(extent);
      cursor = next;
      while (cursor < last && (*cursor == ',' || *cursor == ' ')) ++cursor;
    }
    return shape;
  }

  std::runtime_error Error(const std::string& problem) const {
    return std::runtime_error("input file '" + path_ + "' " + problem);
  }

 private:
  // Position of the first character of the value that follows `key`.
  size_t After(const char* key) const {
    size_t position = text_.find(key);
    if (position == std::string::npos) throw Error("has a damaged header");
    position = text_.find_first_not_of(' ', position + std::strlen(key));
    if (position == std::string::npos) throw Error("has a damaged header");
    return position;
  }

  std::string Quoted(size_t position) const {
    size_t end = text_.find('\'', position + 1);
    if (text_[position] != '\'' || end == std::string::npos) throw Error("holds more than plain numbers");
    return text_.substr(position + 1, end - position - 1);
  }

  std::string text_;
  std::string path_;
};

inline std::string ReadNpyHeaderText(std::ifstream& file, const std::string& path) {
  unsigned char start[8];
  file.read(reinterpret_cast<char*>(start), sizeof(start));
  if (!file || std::memcmp(start, "\x93NUMPY", 6) != 0) {
    throw std::runtime_error("input file '" + path + "' is not a .npy file");
  }
  unsigned char length[4] = {0, 0, 0, 0};
  file.read(reinterpret_cast<char*>(length), start[6] == 1 ? 2 : 4);
  uint32_t size = length[0] | length[1] << 8 | length[2] << 16 | static_cast<uint32_t>(length[3]) << 24;
  constexpr uint32_t kLongestHeader = 1 << 16;
  if (!file || size > kLongestHeader) throw std::runtime_error("input file '" + path + "' has a damaged header");
  std::string text(size, '\0');
  file.read(text.data(), size);
  if (!file) throw std::runtime_error("input file '" + path + "' is truncated");
  return text;
}

inline ffi::Tensor ReadNpy(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot open input file '" + path + "'");
  NpyHeader header(ReadNpyHeaderText(file, path), path);
  if (header.FortranOrder()) throw header.Error("is in Fortran order; save numpy.ascontiguousarray(x)");
  ffi::Tensor tensor =
      ffi::Tensor::FromNDAlloc(AlignedMemory(), ffi::Shape(header.Shape()), header.DType(), DLDevice{kDLCPU, 0});
  file.read(static_cast<char*>(tensor.data_ptr()), static_cast<std::streamsize>(ffi::GetDataSize(tensor)));
  if (!file) throw header.Error("is truncated");
  if (file.peek() != std::ifstream::traits_type::eof()) throw header.Error("has more bytes than its shape says");
  return tensor;
}

inline std::string NpyDescr(DLDataType dtype) {
  for (const NumberFormat& format : kNumberFormats) {
    const DLDataType& other = format.dtype;
    if (dtype.code == other.code && dtype.bits == other.bits && dtype.lanes == other.lanes) return format.descr;
  }
  throw std::runtime_error("an output of type " + ffi::DLDataTypeToString(dtype) + " cannot be written; it must be " +
                           kSupported);
}

inline void WriteNpy(const std::string& path, const ffi::Tensor& tensor) {
  std::string shape;
  for (int64_t extent : tensor.shape()) shape += std::to_string(extent) + ", ";
  std::string text =
      "{'descr': '" + NpyDescr(tensor.dtype()) + "', 'fortran_order': False, 'shape': (" + shape + "), }";
  // Magic, version and length are ten bytes; the numbers that follow start at a multiple of 64.
  size_t padding = (kAlignment - (10 + text.size() + 1) % kAlignment) % kAlignment;
  text += std::string(padding, ' ') + "\n";
  if (text.size() > UINT16_MAX) throw std::runtime_error("output '" + path + "' has too many dimensions");
  const char start[10] = {'\x93', 'N', 'U', 'M', 'P', 'Y', 1, 0, static_cast<char>(text.size() & 0xff),
                          static_cast<char>(text.size() >> 8)};
  std::ofstream file(path, std::ios::binary);
  file.write(start, sizeof(start));
  file.write(text.data(), static_cast<std::streamsize>(text.size()));
  const char* data = static_cast<const char*>(tensor.data_ptr()) + tensor.byte_offset();
  file.write(data, static_cast<std::streamsize>(ffi::GetDataSize(tensor)));
  file.close();
  if (!file) throw std::runtime_error("cannot write output file '" + path + "'");
}

}  // namespace tvmq
#endif  // TVMQ_RUNTIME_NPY_H_
