// tvmq-run: runs a compiled network on a device that has neither Python nor a compiler.
//
// The program contains TVM's runtime; see toolchain.py for how it is built.  It prints one line of JSON on stdout, or
// one line about what is wrong on stderr.

#include <tvm/ffi/any.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/function.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "network.h"
#include "npy.h"

namespace tvmq {
namespace {

constexpr char kUsage[] =
    "usage: tvmq-run LIBRARY.so --input A.npy [--input B.npy ...] --output-prefix PREFIX [--repeat N] [--profile]\n"
    "\n"
    "Runs the network in LIBRARY.so and writes PREFIX0.npy, PREFIX1.npy, ... with its outputs.\n"
    "  --repeat N   time N runs after one that is not timed (default: 1 run, timed, without a warm-up)\n"
    "  --profile    also time every kernel, over N more runs\n"
    "Environment: TVM_NUM_THREADS sets the number of threads.\n"
    "example: TVM_NUM_THREADS=4 tvmq-run net.so --input x.npy --output-prefix y --repeat 20\n";

struct Arguments {
  std::string library;
  std::vector<std::string> inputs;
  std::string output_prefix;
  int repeat = 1;
  bool profile = false;
  bool help = false;
};

int ParseRepeat(const std::string& text) {
  size_t used = 0;
  int repeat = 0;
  try {
    repeat = std::stoi(text, &used);
  } catch (const std::logic_error&) {
    used = 0;
  }
  if (used != text.size() || used == 0 || repeat < 1) {
    throw std::runtime_error("--repeat needs a number of 1 or more, not '" + text + "'");
  }
  return repeat;
}

Arguments Parse(const std::vector<std::string>& words) {
  Arguments arguments;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    auto value = [&]() -> const std::string& {
      if (i + 1 == words.size()) throw std::runtime_error(word + " needs a value; see --help");
      return words[++i];
    };
    if (word == "--input") {
      arguments.inputs.push_back(value());
    } else if (word == "--output-prefix") {
      arguments.output_prefix = value();
    } else if (word == "--repeat") {
      arguments.repeat = ParseRepeat(value());
    } else if (word == "--profile") {
      arguments.profile = true;
    } else if (word == "--help" || word == "-h") {
      arguments.help = true;
    } else if (word.rfind("-", 0) == 0) {
      throw std::runtime_error("unknown option '" + word + "'; see --help");
    } else if (arguments.library.empty()) {
      arguments.library = word;
    } else {
      throw std::runtime_error("unexpected argument '" + word + "'; see --help");
    }
  }
  if (arguments.help) return arguments;
  if (arguments.library.empty()) throw std::runtime_error("no library was given; see --help");
  if (arguments.output_prefix.empty()) throw std::runtime_error("--output-prefix is missing; see --help");
  return arguments;
}

double Now() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

// One call of one kernel: its name and the seconds it took in each profiled run.
struct KernelCall {
  std::string name;
  std::vector<double> seconds;
};

void CheckInputCount(const Network& network, size_t count) {
  int64_t arity = network.InputCount();
  if (arity == static_cast<int64_t>(count)) return;
  throw std::runtime_error("the network has " + std::to_string(arity) + " inputs, but " + std::to_string(count) +
                           " were given");
}

std::vector<double> Time(const Network& network, const std::vector<ffi::Tensor>& inputs, int repeat) {
  std::vector<double> seconds;
  for (int i = 0; i < repeat; ++i) {
    double start = Now();
    network.Invoke(inputs);
    seconds.push_back(Now() - start);
  }
  return seconds;
}

// The kernels in the order in which they run.
std::vector<KernelCall> Profile(const Network& network, const std::vector<ffi::Tensor>& inputs, int repeat) {
  std::vector<KernelCall> calls;
  size_t next = 0;
  std::vector<double> starts;
  ffi::Function instrument = ffi::Function::FromPacked([&](const ffi::AnyView* args, int32_t, ffi::Any* result) {
    *result = static_cast<int64_t>(0);
    std::string name = args[1].cast<ffi::String>();
    if (name.rfind("vm.", 0) == 0) return;  // the machine's own bookkeeping, such as allocating storage
    if (args[2].cast<bool>()) {
      starts.push_back(Now());
      return;
    }
    double elapsed = Now() - starts.back();
    starts.pop_back();
    if (next == calls.size()) calls.push_back({name, {}});
    calls[next++].seconds.push_back(elapsed);
  });
  network.Method("set_instrument")(instrument);
  for (int i = 0; i < repeat; ++i) {
    next = 0;
    network.Invoke(inputs);
  }
  return calls;
}

std::string Number(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.9g", value);
  return text;
}

std::string JsonList(const std::vector<std::string>& items) {
  std::string text;
  for (const std::string& item : items) text += (text.empty() ? "" : ", ") + item;
  return "[" + text + "]";
}

std::string Quoted(const std::string& text) {
  std::string escaped;
  for (char c : text) {
    char code[8];
    bool control = static_cast<unsigned char>(c) < 0x20;
    if (control) std::snprintf(code, sizeof(code), "\\u%04x", c);
    if (c == '"' || c == '\\') escaped += '\\';
    escaped += control ? code : std::string(1, c);
  }
  return "\"" + escaped + "\"";
}

void PrintReport(const std::vector<double>& seconds, const std::vector<std::string>& outputs,
                 const std::vector<KernelCall>& calls, bool profile) {
  std::vector<std::string> times, files, kernels;
  for (double value : seconds) times.push_back(Number(value));
  for (const std::string& path : outputs) files.push_back(Quoted(path));
  for (const KernelCall& call : calls) {
    kernels.push_back("{\"function\": " + Quoted(call.name) + ", \"seconds\": " + Number(Median(call.seconds)) + "}");
  }
  std::string line = "{\"seconds\": " + JsonList(times) + ", \"outputs\": " + JsonList(files);
  if (profile) line += ", \"calls\": " + JsonList(kernels);
  std::printf("%s}\n", line.c_str());
}

void Main(const Arguments& arguments) {
  Network network(arguments.library);
  CheckInputCount(network, arguments.inputs.size());
  std::vector<ffi::Tensor> inputs;
  for (const std::string& path : arguments.inputs) inputs.push_back(ReadNpy(path));

  double start = Now();
  std::vector<ffi::Tensor> outputs = network.Run(inputs);
  std::vector<double> seconds = {Now() - start};
  if (arguments.repeat > 1) seconds = Time(network, inputs, arguments.repeat);
  std::vector<KernelCall> calls;
  if (arguments.profile) calls = Profile(network, inputs, arguments.repeat);

  std::vector<std::string> paths;
  for (const ffi::Tensor& output : outputs) {
    paths.push_back(arguments.output_prefix + std::to_string(paths.size()) + ".npy");
    WriteNpy(paths.back(), output);
  }
  PrintReport(seconds, paths, calls, arguments.profile);
}

int Start(const std::vector<std::string>& words) {
  try {
    Arguments arguments = Parse(words);
    if (arguments.help) {
      std::fputs(kUsage, stdout);
      return 0;
    }
    Main(arguments);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "tvmq-run: %s\n", Message(error).c_str());
    return 1;
  }
}

}  // namespace
}  // namespace tvmq

int main(int argc, char** argv) { return tvmq::Start(std::vector<std::string>(argv + 1, argv + argc)); }
