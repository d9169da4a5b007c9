// What the processor under this program can execute, in the names that /proc/cpuinfo has for it.
#ifndef TVMQ_RUNTIME_PROCESSOR_H_
#define TVMQ_RUNTIME_PROCESSOR_H_

#include <elf.h>
#include <sys/auxv.h>

#include <cstdint>
#include <fstream>
#include <sstream>
#include <string>

#if defined(__aarch64__) || defined(__arm__)
#include <asm/hwcap.h>
#endif

namespace tvmq {

struct Architecture {
  const char* name;
  uint16_t machine;  // in the header of an ELF file
};

inline constexpr Architecture kArchitectures[] = {
    {"x86_64", EM_X86_64}, {"aarch64", EM_AARCH64}, {"armv7l", EM_ARM}};

#if defined(__aarch64__)
inline constexpr uint16_t kOwnMachine = EM_AARCH64;
#elif defined(__arm__)
inline constexpr uint16_t kOwnMachine = EM_ARM;
#elif defined(__x86_64__)
inline constexpr uint16_t kOwnMachine = EM_X86_64;
#else
#error "no target of tvmq has this architecture"
#endif

inline std::string ArchitectureName(uint16_t machine) {
  for (const Architecture& architecture : kArchitectures) {
    if (architecture.machine == machine) return architecture.name;
  }
  return "another architecture (ELF machine " + std::to_string(machine) + ")";
}

#if defined(__x86_64__)

// x86 has no complete list of its extensions but this file.
inline bool HasExtension(const std::string& wanted) {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line)) {
    if (line.compare(0, 5, "flags") != 0) continue;
    std::istringstream words(line.substr(line.find(':') + 1));
    for (std::string word; words >> word;) {
      if (word == wanted) return true;
    }
    return false;  // all processors of a machine are the same
  }
  return false;
}

#else

// The kernel tells every process what it may use.  /proc/cpuinfo says the same, except in an emulator, which shows the
// file of the machine that it runs on.
struct Extension {
  const char* name;
  unsigned long word;
  unsigned long bit;
};

inline constexpr Extension kExtensions[] = {
#if defined(__aarch64__)
    {"asimd", AT_HWCAP, HWCAP_ASIMD},       {"asimdhp", AT_HWCAP, HWCAP_ASIMDHP},
    {"asimddp", AT_HWCAP, HWCAP_ASIMDDP},   {"asimdrdm", AT_HWCAP, HWCAP_ASIMDRDM},
    {"asimdfhm", AT_HWCAP, HWCAP_ASIMDFHM}, {"atomics", AT_HWCAP, HWCAP_ATOMICS},
    {"crc32", AT_HWCAP, HWCAP_CRC32},       {"fphp", AT_HWCAP, HWCAP_FPHP},
    {"sve", AT_HWCAP, HWCAP_SVE},           {"i8mm", AT_HWCAP2, HWCAP2_I8MM},
    {"bf16", AT_HWCAP2, HWCAP2_BF16},       {"sve2", AT_HWCAP2, HWCAP2_SVE2},
#else
    {"neon", AT_HWCAP, HWCAP_NEON},     {"vfpv3", AT_HWCAP, HWCAP_VFPv3},    {"vfpv4", AT_HWCAP, HWCAP_VFPv4},
    {"vfpd32", AT_HWCAP, HWCAP_VFPD32}, {"idiva", AT_HWCAP, HWCAP_IDIVA},    {"idivt", AT_HWCAP, HWCAP_IDIVT},
    {"lpae", AT_HWCAP, HWCAP_LPAE},     {"crc32", AT_HWCAP2, HWCAP2_CRC32},
#endif
};

inline bool HasExtension(const std::string& wanted) {
  for (const Extension& extension : kExtensions) {
    if (wanted == extension.name) return (getauxval(extension.word) & extension.bit) != 0;
  }
  return false;
}

#endif

}  // namespace tvmq
#endif  // TVMQ_RUNTIME_PROCESSOR_H_
