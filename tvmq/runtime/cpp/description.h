// What a library says of itself, and whether this processor can execute it: asked before any of its code runs.
#ifndef TVMQ_RUNTIME_DESCRIPTION_H_
#define TVMQ_RUNTIME_DESCRIPTION_H_

#include <dlfcn.h>
#include <elf.h>
#include <link.h>

#include <cstdint>
#include <cstring>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "processor.h"

namespace tvmq {

struct Tensor {
  std::string name;
  std::string dtype;           // numpy's name
  std::vector<int64_t> shape;  // -1 is the open batch
};

struct Description {
  std::string target;
  std::vector<std::string> extensions;
  std::vector<Tensor> inputs;
  std::vector<Tensor> outputs;
};

// The text has a line per fact, a word that says which and then the fact; a tensor's name is the rest of its line.
//
//     target raspberry-pi-4
//     needs asimd
//     input float32 1,3,32,32 image
//     output float32 1,10 scores
inline std::vector<int64_t> ParseShape(const std::string& text) {
  std::vector<int64_t> shape;
  std::istringstream extents(text == "scalar" ? "" : text);
  for (std::string extent; std::getline(extents, extent, ',');) shape.push_back(std::stoll(extent));
  return shape;
}

inline Description ParseDescription(const std::string& text) {
  Description description;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string kind;
    words >> kind;
    if (kind == "target") {
      words >> description.target;
    } else if (kind == "needs") {
      for (std::string word; words >> word;) description.extensions.push_back(word);
    } else if (kind == "input" || kind == "output") {
      Tensor tensor;
      std::string shape;
      words >> tensor.dtype >> shape >> std::ws;
      std::getline(words, tensor.name);
      tensor.shape = ParseShape(shape);
      (kind == "input" ? description.inputs : description.outputs).push_back(tensor);
    }
  }
  return description;
}

// The loader's own message for a library of another architecture is about ELF classes, or that there is no such file;
// of a library that was not copied to its end it says nothing, and dies.
inline void RequireLibrary(const std::string& file, const std::string& name) {
  std::ifstream stream(file, std::ios::binary);
  if (!stream) throw std::runtime_error("cannot open library '" + name + "'");
  ElfW(Ehdr) header = {};
  stream.read(reinterpret_cast<char*>(&header), sizeof(header));
  std::runtime_error damaged("file '" + name + "' is no library, or not all of one; copy it again");
  if (!stream || std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0) throw damaged;
  if (header.e_machine != kOwnMachine) {
    throw std::runtime_error("library '" + name + "' is for " + ArchitectureName(header.e_machine) +
                             ", and this system is " + ArchitectureName(kOwnMachine) +
                             "; compile the network for this board");
  }
  // The table of sections is the last thing in a file.
  uint64_t end = header.e_shoff + uint64_t{header.e_shnum} * header.e_shentsize;
  stream.seekg(0, std::ios::end);
  if (static_cast<uint64_t>(stream.tellg()) < end) throw damaged;
}

inline void RequireExtensions(const Description& description, const std::string& name) {
  std::string missing;
  for (const std::string& extension : description.extensions) {
    if (!HasExtension(extension)) missing += (missing.empty() ? "" : ", ") + extension;
  }
  if (missing.empty()) return;
  throw std::runtime_error("library '" + name + "' was compiled for " + description.target + " and needs " + missing +
                           ", which this processor lacks; compile the network for this board");
}

// Throws if the library cannot be executed here; `name` is what messages call it.
inline Description ReadDescription(const std::string& file, const std::string& name) {
  RequireLibrary(file, name);
  void* handle = dlopen(file.c_str(), RTLD_LAZY | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* reason = dlerror();
    throw std::runtime_error("cannot load library '" + name + "': " + (reason == nullptr ? "no reason" : reason));
  }
  const char* text = static_cast<const char*>(dlsym(handle, "tvmq_description"));
  std::string copy = text == nullptr ? "" : text;
  dlclose(handle);
  if (text == nullptr) {
    throw std::runtime_error("library '" + name + "' holds no network of this version of tvmq; compile it again");
  }
  Description description = ParseDescription(copy);
  RequireExtensions(description, name);
  return description;
}

}  // namespace tvmq
#endif  // TVMQ_RUNTIME_DESCRIPTION_H_
